"""ComiRec with self-attention on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/comirec_sa.py --config.data.path=DIR --workdir runs/comirec_sa

Test, seed 0, of all 200 behaviours and with positions by place (commit d97224a): HR@10 .169, NDCG@10 .090. To be made
again.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "comirec_sa"
    return config
