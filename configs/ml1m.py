"""T2Diff at every position on MovieLens 1M (raw files), the paper's user hold-out protocol at a realistic width.

python train.py --config configs/ml1m.py --config.data.path=DIR --workdir runs/ml1m

15 minutes of training on one busy CPU core. Test, means of seeds 0 to 2, each of which holds out other users (commit
198a3f1): Recall@2 .097, Recall@20 .418, MRR@20 .123, NDCG@10 .155; the paper prints .077, .277, .087 for the first
three. With --config.model.slot=empty: .095, .413, .121, .154; with --config.model.name=sasrec: .096, .410, .122, .155.
With --config.train.steps=6000, seed 0: .102, .429, .127, .159.
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
