"""HSTU on MovieLens 1M, leave-one-out, ids only: all but the model and its depth as in `ml1m_loo`.

python train.py --config configs/rivals/hstu.py --config.data.path=DIR --workdir runs/hstu

50 minutes on one CPU core. Test, means of seeds 0 to 2 (commits 1f61d91, a50a146, the depth a flag): HR@10 .339,
NDCG@10 .199; without learned positions and with two blocks, seeds 0 to 2 (commit 198a3f1), .331, .194; published,
base: .310, .172, large: .329, .189 (on re-ordered ties, with times, of which this row knows only the order).
"""

from configs import ml1m_loo


def get_config():
    """Three blocks as `rivals/sasrec`; chosen on validation, .197 against .195."""
    config = ml1m_loo.get_config()
    config.model.name = "hstu"
    config.model.layers = 3
    return config
