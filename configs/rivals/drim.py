"""In the style of DRIM on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/drim.py --config.data.path=DIR --workdir runs/drim

36 minutes. Test, seed 0 (commit db1ecdb): HR@10 .203, NDCG@10 .113; after 3,000 steps (commit
583b356) .191, .104.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "drim"
    return config
