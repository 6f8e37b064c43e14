"""T2Diff at every position on MovieLens 1M as most published sequential numbers are made: leave-one-out, ids only.

python train.py --config configs/ml1m_loo.py --config.data.path=DIR --workdir runs/ml1m_loo
"""

from configs import ml1m


def get_config():
    """The 5-core catalogue (3,416 items), the last behaviour of every user as the target, no categories."""
    config = ml1m.get_config()
    config.data.protocol = "leave_one_out"
    config.data.min_user_count = 5
    config.data.min_item_count = 5
    config.data.categories = False
    return config
