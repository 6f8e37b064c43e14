"""The configuration that a run was started with: `--config=configs/of_run.py:WORKDIR`.

eval.py and prerank.py read it where no --config is given; with train.py it goes on with the run:

python train.py --config=configs/of_run.py:runs/own --workdir runs/own
"""

from ml_collections import ConfigDict

from configs import base
from t2diff_jax.config_values import from_mapping, to_dict
from t2diff_jax.workdir import read_config


def get_config(workdir: str) -> ConfigDict:
    """What `workdir` holds in its config.json; keys that an older version did not write are those of `base`."""
    stored, _ = read_config(workdir, from_mapping(base.get_config()))
    return ConfigDict(to_dict(stored))
