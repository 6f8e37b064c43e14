"""HSTU on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/hstu.py --config.data.path=DIR --workdir runs/hstu

Test, means of seeds 0 to 2 (commit 198a3f1, on an H200): HR@10 .331, NDCG@10 .194; published, base: .310, .172, large:
.329, .189 (on re-ordered ties, with times, of which this row knows only the order).
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "hstu"
    return config
