"""T2Diff on KuaiRand (27K, 1K or Pure, the published CSV files), as in the paper: clicks of tab 1, April 8 to 21.

python train.py --config configs/kuairand.py --config.data.path=DIR --workdir runs/kuairand
"""

from configs import base


def get_config():
    """The base configuration on KuaiRand with sampled negatives: the catalogue is large."""
    config = base.get_config()
    config.data.source = "kuairand"
    config.data.path = "data/KuaiRand-27K"
    config.data.min_user_count = 11
    config.data.targets_per_user = 3
    config.diffusion.weight = 10.0
    config.loss.negatives = 4096
    config.optim.lazy_rows = True
    config.eval.ks = (10, 20, 50, 100)
    config.optim.learning_rate = 3e-3
    config.train.steps = 20000
    config.train.eval_every = 2000
    config.train.checkpoint_every = 2000
    return config
