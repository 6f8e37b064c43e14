"""STOSA on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/stosa.py --config.data.path=DIR --workdir runs/stosa

21 minutes. Test, seed 0 (commit d97224a, whose Muon took the heads of query, key and value apart): HR@10 .313, NDCG@10
.183. To be made again.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "stosa"
    return config
