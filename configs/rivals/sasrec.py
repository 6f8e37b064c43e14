"""SASRec on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/sasrec.py --config.data.path=DIR --workdir runs/sasrec

8 minutes. Test, means of seeds 0 to 2: HR@10 .320, NDCG@10 .186; published with a softmax over
many negatives: .316, .186.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "sasrec"
    return config
