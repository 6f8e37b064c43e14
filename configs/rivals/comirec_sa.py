"""ComiRec with self-attention on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/comirec_sa.py --config.data.path=DIR --workdir runs/comirec_sa

Test, seed 0 (commit db1ecdb, an H200): HR@10 .226, NDCG@10 .128. After 3,000 steps (18 minutes on a CPU core; commit
0f955ac): .211, .118; with all 200 behaviours in place of the latest 20 .169, .090.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "comirec_sa"
    return config
