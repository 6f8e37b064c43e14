"""Caser on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/caser.py --config.data.path=DIR --workdir runs/caser

15 minutes. Test, seed 0 (commit db1ecdb): HR@10 .303, NDCG@10 .173;
after 3,000 steps .297, .170 (means of seeds 0 to 2).
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "caser"
    return config
