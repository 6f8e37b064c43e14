"""T2Diff at every position on MovieLens 1M (raw files), the paper's user hold-out protocol at a realistic width.

python train.py --config configs/ml1m.py --config.data.path=DIR --workdir runs/ml1m

15 minutes of training on one busy CPU core. Test, means of seeds 0 to 2, each of which holds out other users (commits
b700984, where what followed differed, by flags, and 817746e): Recall@2 .099, Recall@20 .423, MRR@2 .078, MRR@20 .126,
NDCG@10 .159; the paper prints .077, .277, .061, .087 for the first four. With --config.model.slot=empty: .097, .418,
.077, .123, .156; with --config.model.name=sasrec: .096, .410, .077, .122, .155. Validation no longer rises after half
the steps.
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
    config.diffusion.stop_gradient = False
    config.diffusion.target = "item"  # by the log loss of validation under leave-one-out, in each of three seeds
    config.optim.kernels = "muon"
    config.train.batch_size = 8
    config.train.log_every = 100
    config.train.steps = 3000
    config.train.eval_every = 1500
    config.train.checkpoint_every = 1500
    return config
