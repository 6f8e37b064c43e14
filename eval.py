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
from t2diff_jax.config_values import from_mapping
from t2diff_jax.explain import explained
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
_AGAINST = flags.DEFINE_string("against", None, "Workdir of another evaluated run on the same data, to compare with.")
flags.register_multi_flags_validator(
    ["name", "split", "against"],
    lambda given: not given["against"] or given["name"] in ("", final.evaluation_name(given["split"])),
    "--against compares ranks, which an evaluation under another --name does not keep: leave --name out",
)


def main(argv: list[str]) -> None:
    """Restores, evaluates, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with explained(on_interrupt="stopped"):
        run(from_mapping(_CONFIG.value), pathlib.Path(_WORKDIR.value))


def run(config: Config, workdir: pathlib.Path) -> None:
    """Evaluates `workdir`, whose model and data must be those of `config`."""
    experiment = final.reopen(config, workdir)
    name, split = _NAME.value or final.evaluation_name(_SPLIT.value), _SPLIT.value
    step = final.evaluate_checkpoint(experiment, workdir, _STEP.value, name, split)["step"]
    if _AGAINST.value:
        say(f"\n{final.compare(workdir, pathlib.Path(_AGAINST.value), config.eval.ks, split)}")
    if _SHOW.value:
        final.show_recommendations(experiment, workdir, step, _SHOW.value, split)
    if _EXPORT.value:
        final.export_vectors(experiment, workdir, step, pathlib.Path(_EXPORT.value), split)
        say(f"\nvectors of items and users in {_EXPORT.value}")
    say(f"\nwritten to {workdir / name}.json")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(_CONFIG, of_run=True))
