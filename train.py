"""Trains a retriever and tests its best checkpoint.

python train.py --config configs/quickstart.py --workdir runs/quickstart
"""

import pathlib
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from t2diff_jax import experiment as experiment_lib
from t2diff_jax import final, loop
from t2diff_jax.command_line import parser
from t2diff_jax.config import Config
from t2diff_jax.config_values import from_mapping
from t2diff_jax.dry_run import dry_run
from t2diff_jax.explain import explained
from t2diff_jax.provenance import provenance
from t2diff_jax.writer import say

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; override with --config.key=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and config; start again to resume.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other processes (found by itself on TPU pods and Slurm).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where it is not found by itself.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, with --coordinator.")
_HEARTBEAT = flags.DEFINE_integer("heartbeat", 100, "Seconds of silence after which a process counts as ended.", 1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile every program for --topology, say what it takes, and end.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "local", "With --dry_run: local, cuda, or what is not here, as v5e:16x16, h200:8."
)
_SLICES = flags.DEFINE_integer("slices", 1, "With --dry_run: so many TPU slices of that topology.", 1)
flags.register_multi_flags_validator(
    ["workdir", "dry_run"], lambda given: given["workdir"] or given["dry_run"], "--workdir is needed to train"
)
flags.register_multi_flags_validator(
    ["multihost", "coordinator", "processes", "process"],
    lambda given: given["multihost"] or all(given[name] is None for name in ("coordinator", "processes", "process")),
    "--coordinator, --processes and --process need --multihost",
)


def main(argv: list[str]) -> None:
    """Process start-up, then one call each into training and testing."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _MULTIHOST.value:
        joined = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
        jax.distributed.initialize(*joined, heartbeat_timeout_seconds=_HEARTBEAT.value)
    with explained(on_interrupt="stopped; the same command goes on from the last checkpoint"):
        config = from_mapping(_CONFIG.value)
        if not _DRY_RUN.value:
            return run(config, pathlib.Path(_WORKDIR.value))
        for line in dry_run(config, _TOPOLOGY.value, _SLICES.value):
            say(line)


def run(config: Config, workdir: pathlib.Path) -> None:
    """Trains to the end, evaluates, and says where everything lies."""
    if config.train.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.train.compilation_cache)
    experiment = experiment_lib.build(config)
    say(experiment.summary())
    loop.train(experiment, workdir, provenance(sys.argv))
    final.evaluate_checkpoint(experiment, workdir, None)
    say(f"\ncheckpoints  {workdir / 'checkpoints'}\nmetrics      {workdir / 'metrics.jsonl'}, {workdir / 'eval.json'}")
    say(f"config       {workdir / 'config.json'}, {workdir / 'run.json'}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parser(_CONFIG))
