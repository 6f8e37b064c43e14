"""Trains a pre-ranker (COLD) on what a trained retriever recommends, and measures what re-ranking brings and costs.

python prerank.py --workdir runs/quickstart
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from t2diff_jax import final, preranking
from t2diff_jax.command_line import parser
from t2diff_jax.config import Config
from t2diff_jax.config_values import from_mapping
from t2diff_jax.explain import explained
from t2diff_jax.writer import say, write_json

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's own if not given. --config.cold.* and --config.eval.* are free."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the retriever's run; the result is written there.")
_STEP = flags.DEFINE_integer("step", None, "The retriever's checkpoint; the best by validation if not given.")
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "validation"], "The targets; for choices validation: half of its users."
)


def main(argv: list[str]) -> None:
    """Restores the retriever, trains behind it, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with explained(on_interrupt="stopped"):
        run(from_mapping(_CONFIG.value), pathlib.Path(_WORKDIR.value))


def run(config: Config, workdir: pathlib.Path) -> None:
    """Pre-ranks for the retriever in `workdir`, whose model and data must be those of `config`."""
    experiment = final.reopen(config, workdir)
    state, _ = final.restore(experiment, workdir, _STEP.value)
    result = preranking.run(experiment, state.evaluation_variables(), _SPLIT.value)
    path = workdir / ("prerank.json" if _SPLIT.value == "test" else f"prerank_{_SPLIT.value}.json")
    write_json(path, result)
    say(f"\n{preranking.described(result)}\n\nwritten to {path}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(_CONFIG, of_run=True))
