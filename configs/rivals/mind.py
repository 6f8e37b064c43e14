"""MIND on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/mind.py --config.data.path=DIR --workdir runs/mind

10 minutes. Test, seed 0: HR@10 .093, NDCG@10 .047: it does not know the order of 200 behaviours.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "mind"
    return config
