"""ComiRec with self-attention on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/comirec_sa.py --config.data.path=DIR --workdir runs/comirec_sa

After 3,000 steps (18 minutes): test, seed 0, latest 20 behaviours (commit 0f955ac): HR@10 .211, NDCG@10 .118; all
200: .169, .090.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "comirec_sa"
    return config
