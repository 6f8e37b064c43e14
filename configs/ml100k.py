"""T2Diff at every position on MovieLens 100K (raw files), split in time: the timestamps are real.

python train.py --config configs/ml100k.py --config.data.path=DIR --workdir runs/ml100k

Two minutes on one CPU core. Test, seed 0 (commit 0172f0b): Recall@20 .250, NDCG@10 .084; popularity .070, .018.
Since 746d79d item vectors are normed: to be measured again.
"""

from configs import every_position


def get_config():
    """MovieLens 100K, sessions ended by an hour without a rating, windows of 100."""
    config = every_position.get_config()
    config.data.source = "movielens"
    config.data.path = "data/ml-100k"
    config.data.protocol = "temporal"
    config.data.window = 100
    config.model.session_gap = 3600
    config.train.batch_size = 8
    config.train.steps = 1000
    config.train.eval_every = 100
    config.train.checkpoint_every = 100
    return config
