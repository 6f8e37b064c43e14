"""STOSA on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/stosa.py --config.data.path=DIR --workdir runs/stosa

11 minutes. Test, seed 0 (commit 0f955ac): HR@10 .316, NDCG@10 .185.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "stosa"
    return config
