"""T2Diff at every position on MovieLens 1M (raw files), the paper's user hold-out protocol at a realistic width.

python train.py --config configs/ml1m.py --config.data.path=DIR --workdir runs/ml1m

61 minutes of training on one busy CPU core. Test, items already had excluded, means of seeds 0 to 2 (commits 0cbe1c5,
db1ecdb): Recall@2 .128, Recall@20 .488, MRR@20 .155, NDCG@10 .195; the paper prints .077, .277, .087 for the first
three. With --config.model.name=sasrec: .125, .485, .153, .193; with --config.model.slot=empty: .129, .489, .155, .195.
"""

from configs import every_position


def get_config():
    """MovieLens 1M with ids and categories, as the paper; windows of 200, at most five targets per test user."""
    config = every_position.get_config()
    config.data.source = "movielens"
    config.data.path = "data/ml-1m"
    config.data.real_times = False
    config.data.user_features = False
    config.data.window = 200
    config.data.eval_positions = 5
    config.data.validation_positions = 20
    config.model.dim = 128
    config.model.heads = 4
    config.model.hidden = 512
    config.model.sketch_dim = 0  # learned signatures learn training users by heart; nobody rates a film twice
    config.loss.exclude_seen = True
    config.loss.seen_before = 0  # as the rows above were made; 4096 does better (docs/experiments.md, 23rd session)
    config.eval.exclude_seen = True
    config.train.batch_size = 8
    config.train.log_every = 100
    config.train.steps = 9000
    config.train.eval_every = 3000
    config.train.checkpoint_every = 3000
    return config
