"""MIND on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/mind.py --config.data.path=DIR --workdir runs/mind

Test, seed 0 (commit db1ecdb, an H200): HR@10 .204, NDCG@10 .112. After 3,000 steps (8 minutes on a CPU core; commit
d47f76e): .194, .104.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "mind"
    return config
