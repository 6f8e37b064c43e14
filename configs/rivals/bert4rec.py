"""BERT4Rec on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/bert4rec.py --config.data.path=DIR --workdir runs/bert4rec

7 minutes. Test, seed 0 (commit 3f7bb46): HR@10 .259, NDCG@10 .145; published: HR@10 .284. It learns from a fifth of the
places and still rises at the end.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "bert4rec"
    return config
