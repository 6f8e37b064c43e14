"""DAT with behaviours on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/dat.py --config.data.path=DIR --workdir runs/dat

Of commits that read the augmented vectors unscaled and averaged the mimic losses over the width, which left both
without effect: test, seed 0 (commit db1ecdb, an H200): HR@10 .268, NDCG@10 .149. After 3,000 steps (7 minutes on a
CPU core), means of seeds 0 to 2 (commits b042dea, 3c71760): .263, .147.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "dat"
    return config
