"""Evaluates a checkpoint over the full catalogue.

python eval.py --workdir runs/quickstart
"""

import pathlib
import re

from absl import app, flags
from ml_collections import config_flags

from t2diff_jax import final
from t2diff_jax.command_line import parser
from t2diff_jax.config import Config
from t2diff_jax.config_values import ConfigError, differences, from_mapping
from t2diff_jax.data.splits import requests_now
from t2diff_jax.explain import explained
from t2diff_jax.workdir import read_config
from t2diff_jax.writer import say

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's own if not given. --config.eval.* and --config.diffusion.sampler* are free."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run; the result is written there.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the best by validation if not given.")
_SPLITS = ["test", "validation"]
_SPLIT = flags.DEFINE_enum("split", "test", _SPLITS, "The targets: for choices, validation.")
_NAME = flags.DEFINE_string("name", "", "The result is written to WORKDIR/NAME.json; eval or eval_SPLIT if not given.")
flags.register_validator("name", re.compile(r"(eval\w*)?").fullmatch, "must be eval or begin with it: eval_calls_4")
flags.register_multi_flags_validator(
    ["name", "split"],
    lambda given: (
        given["name"] not in {final.evaluation_name(s) for s in _SPLITS} - {final.evaluation_name(given["split"])}
    ),
    "--name is that of the other split's result, which would be lost: give another",
)
_SHOW = flags.DEFINE_integer("show", 0, "Print the recommendations of so many requests as well.", lower_bound=0)
_EXPORT = flags.DEFINE_string("export", None, "Folder for the vectors of all items and of the requests, as .npy files.")
_NOW = flags.DEFINE_bool("now", False, "Show and export the request of every user after the last behaviour of the log.")
flags.register_multi_flags_validator(
    ["now", "show", "export"],
    lambda given: not given["now"] or given["show"] or given["export"],
    "--now says whose requests --show and --export are about: give one of them",
)
_AGAINST = flags.DEFINE_string(
    "against", None, "Workdir of another run on the same data, evaluated under the same name."
)
# Of the configuration: what makes it another evaluation than the run's own.
_ANOTHER = ("eval.exclude_seen", "eval.merge", "diffusion.sampler", "diffusion.samples")


def main(argv: list[str]) -> None:
    """Restores, evaluates, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with explained(on_interrupt="stopped"):
        run(from_mapping(_CONFIG.value), pathlib.Path(_WORKDIR.value))


def run(config: Config, workdir: pathlib.Path) -> None:
    """Evaluates `workdir`, whose model and data must be those of `config`."""
    name, split = _name(config, workdir), _SPLIT.value
    other = _AGAINST.value and pathlib.Path(_AGAINST.value)
    if other and not other.samefile(workdir):
        final.check_comparable(workdir, other, name)
    experiment = final.reopen(config, workdir)
    step = final.evaluate_checkpoint(experiment, workdir, _STEP.value, name, split)["step"]
    if other:
        say(f"\n{final.compare(workdir, other, config.eval.ks, name)}")
    requests = requests_now(experiment.log) if _NOW.value else getattr(experiment.split, split)
    if _SHOW.value:
        final.show_recommendations(experiment, workdir, step, requests.first(_SHOW.value))
    if _EXPORT.value:
        final.export_vectors(experiment, workdir, step, requests, pathlib.Path(_EXPORT.value))
        say(f"\nvectors of items and users in {_EXPORT.value}")
    say(f"\nwritten to {workdir / name}.json")


def _name(config: Config, workdir: pathlib.Path) -> str:
    """What the evaluation is called.

    Raises:
      ConfigError: it is not that of the run itself, and would take its place.
    """
    own, (stored, _) = final.evaluation_name(_SPLIT.value), read_config(workdir, config)
    apart = [f"--config.{key}" for key in differences(stored, config) if key.startswith(_ANOTHER)]
    apart += ["--step"] if _STEP.value is not None else []
    if apart and _NAME.value in ("", own):
        raise ConfigError(
            f"{', '.join(apart)}: the result would take the place of {own}.json; give it a --name: eval_2"
        )
    return _NAME.value or own


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(_CONFIG, of_run=True))
