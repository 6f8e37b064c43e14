"""STOSA on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/stosa.py --config.data.path=DIR --workdir runs/stosa

Test, means of seeds 0 to 2 (commit 198a3f1, on an H200): HR@10 .327, NDCG@10 .193; after 3,000 steps, seed 0, .316,
.185.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "stosa"
    return config
