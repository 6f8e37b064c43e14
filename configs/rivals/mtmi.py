"""In the style of MTMI on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/mtmi.py --config.data.path=DIR --workdir runs/mtmi

45 minutes. Test, seed 0 (commit db1ecdb): HR@10 .264, NDCG@10 .149; after 3,000 steps .268, .149.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "mtmi"
    return config
