"""Caser on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/caser.py --config.data.path=DIR --workdir runs/caser

Test, seed 0 (commit db1ecdb, an H200): HR@10 .303, NDCG@10 .173. After 3,000 steps (5 minutes on a CPU core), means of
seeds 0 to 2 (commits 3f7bb46, 3c71760): .297, .170.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "caser"
    return config
