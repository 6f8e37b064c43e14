"""In the style of MTMI on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/mtmi.py --config.data.path=DIR --workdir runs/mtmi

Test, seed 0 (commit db1ecdb, an H200): HR@10 .264, NDCG@10 .149. After 3,000 steps (15 minutes on a CPU core; commit
3c71760): .268, .149. The towers' vectors are further apart than `model.interests.margin` by themselves: the repel term
ends at .0006.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "mtmi"
    return config
