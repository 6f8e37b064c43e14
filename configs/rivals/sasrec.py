"""SASRec on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/sasrec.py --config.data.path=DIR --workdir runs/sasrec

28 minutes. Test, means of seeds 0 to 2 (commits 583b356, 532e646, 198a3f1): HR@10 .339, NDCG@10 .199; after 3,000 steps
.320, .186; published with a softmax over many negatives: .316, .186.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "sasrec"
    return config
