"""BERT4Rec on MovieLens 1M, leave-one-out, ids only: `ml1m_loo` but for the model and masks.

python train.py --config configs/rivals/bert4rec.py --config.data.path=DIR --workdir runs/bert4rec

25 minutes. Test, means of seeds 0 and 1 (commit d34758f): HR@10 .317, NDCG@10 .183; published: HR@10 .284. It learns
from the masked places only: with a fifth of them and 3,000 steps .259, .145 (commit 3f7bb46).
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model, chosen on validation."""
    config = ml1m_loo.get_config()
    config.model.name = "bert4rec"
    config.model.bert4rec.masked = 0.3
    return config
