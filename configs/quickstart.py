"""T2Diff on the embedded synthetic log: the whole pipeline in a few minutes.

python train.py --config configs/quickstart.py --workdir runs/quickstart
"""

from configs import base


def get_config():
    """The base configuration, shorter."""
    config = base.get_config()
    config.train.steps = 600
    config.train.eval_every = 200
    config.train.checkpoint_every = 200
    return config
