"""T2Diff at every position on MovieLens 1M (raw files), the paper's user hold-out protocol at a realistic width.

python train.py --config configs/ml1m.py --config.data.path=DIR --workdir runs/ml1m

An hour and a half of training on one busy CPU core. Test, items already had excluded, means of seeds 0 to 2 (commits
c1798c6, e9219a0): Recall@2 .128, Recall@20 .495, MRR@20 .157, NDCG@10 .198; the paper prints .077, .277, .087 for the
first three. With --config.model.name=sasrec --config.model.layers=3: .132, .488, .158, .198.
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
    config.model.behaviour_dropout = 0.15  # users whom training never saw are tested: it must not know its own by heart
    config.loss.exclude_seen = True
    config.eval.exclude_seen = True
    config.train.batch_size = 8
    config.train.log_every = 100
    config.train.steps = 9000
    config.train.eval_every = 3000
    config.train.checkpoint_every = 3000
    return config
