"""MIND on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/mind.py --config.data.path=DIR --workdir runs/mind

Test, seed 0, of all 200 behaviours (commit d97224a): HR@10 .093, NDCG@10 .047; with windows of 20: .150, .077. To be
made again with the latest 20 of windows of 200.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "mind"
    return config
