"""T2Diff at every position on MovieLens 1M (raw files), the paper's user hold-out protocol at a realistic width.

python train.py --config configs/ml1m.py --config.data.path=DIR --workdir runs/ml1m

40 minutes on one CPU core. Test, seed 0: Recall@2 .105, Recall@20 .414, MRR@2 .080, MRR@20 .125, NDCG@10 .156. The
paper prints .077, .277, .061, .087 for the first four. With --config.model.slot=empty: .099, .414, .078, .124, .155.
Those checkpoints were chosen on five validation targets a user (--config.data.validation_positions=5), not twenty.
All of commits before 746d79d, which norms item vectors: to be measured again.
"""

from configs import every_position


def get_config():
    """MovieLens 1M with ids and categories, as the paper; windows of 200, five targets per test user."""
    config = every_position.get_config()
    config.data.source = "movielens"
    config.data.path = "data/ml-1m"
    config.data.real_times = False
    config.data.user_features = False
    config.data.window = 200
    config.data.eval_positions = 5
    config.data.validation_positions = 20
    config.train.batch_size = 8
    config.train.log_every = 100
    config.train.steps = 8000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    return config
