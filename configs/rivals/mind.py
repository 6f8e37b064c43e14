"""MIND on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/mind.py --config.data.path=DIR --workdir runs/mind

Test, seed 0, of the latest 20 behaviours (commit 0f955ac): HR@10 .153, NDCG@10 .078; of all 200: .093, .047.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "mind"
    return config
