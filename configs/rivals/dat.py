"""DAT with behaviours on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/dat.py --config.data.path=DIR --workdir runs/dat

Test, seed 0 (commit d34758f): HR@10 .257, NDCG@10 .144. Of commits that read the augmented vectors unscaled and
averaged the mimic losses over the width, which left both without effect: .268, .149 (seed 0, commit db1ecdb, an H200);
after 3,000 steps (7 minutes on a CPU core) .263, .147 (means of seeds 0 to 2, commits b042dea, 3c71760).
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "dat"
    return config
