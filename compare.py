"""Trains a set of models on one log, each as train.py would, and prints one table of them.

python compare.py --config configs/table.py --config.data.path=LOG.csv --workdir runs/own --seeds=3
python compare.py --config configs/table.py --config.data.path=LOG.csv --workdir runs/own --models=sasrec,gru4rec \
    --row="four intents: --config.model.name=t2diff_causal --config.diffusion.samples=4 ..."

What is finished is not trained again: start it again after a stop, or with more models or seeds. Small models leave
much of a GPU idle: --at_once=8 trains so many at a time (NVIDIA's MPS lets them compute at the same time).

Rows that are tested in another way (--config.eval.exclude_seen, the protocol, the log) have a table of their own.
"""

import collections
import concurrent.futures
import itertools
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

from absl import app, flags
from ml_collections import config_flags

from t2diff_jax.child_runs import ChildRuns, stopped_by_signals
from t2diff_jax.command_line import config_of, parser
from t2diff_jax.config import Config
from t2diff_jax.config_values import ConfigError
from t2diff_jax.explain import explained
from t2diff_jax.interrupt import Preempted
from t2diff_jax.results.runs import ResultsError, Run, is_excluded, read_run, rows_of
from t2diff_jax.results.tables import accuracy_table, columns
from t2diff_jax.workdir import check_same_run, tell_other_logs

_CONFIG = config_flags.DEFINE_config_file("config", None, "What all models share; override with --config.key=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, and of the table: comparison.md.")
_MODELS = flags.DEFINE_list("models", ["t2diff_causal", "sasrec"], "Models of model.name, a row each.")
_ROW = flags.DEFINE_multi_string("row", [], "A further row: its name, a colon, and what sets it apart.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Training seeds a row, from 0.", lower_bound=1)
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Runs at a time; of several each writes to its own file.", lower_bound=1)
_SHOWN = (
    "row",
    "seeds",
    "recall@10",
    "ndcg@10",
    "recall@20",
    "mrr@20",
    "parameters",
    "ms per user",
    "minutes of training",
)


def main(argv: list[str]) -> None:
    """One process a run; then the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    stopped = "stopped; the same command goes on"
    with explained(on_interrupt=stopped), stopped_by_signals(stopped):
        run(pathlib.Path(_WORKDIR.value), _rows([*map(_model, _MODELS.value), *_ROW.value]))


def run(folder: pathlib.Path, rows: dict[str, list[str]]) -> None:
    """Trains what is not there yet; prints and writes the tables. rows: what sets a row apart, by its label."""
    given = flags.FLAGS["config"]
    shared = [f"--config={config_flags.get_config_filename(given)}"]
    shared += [f"--config.{key}={value}" for key, value in config_flags.get_override_values(given).items()]
    if any(word.split("=")[0] == "--config.seed" for word in itertools.chain(shared, *rows.values())):
        raise app.UsageError("--config.seed: every row has the seeds from 0 on, as many as --seeds says")
    wanted = {
        folder / f"{label}_seed{seed}": [*shared, *own, f"--config.seed={seed}"]
        for label, own in rows.items()
        for seed in range(_SEEDS.value)
    }
    open_runs = [workdir for workdir, config in configs_of(wanted).items() if not is_done(workdir, config)]
    train_all({workdir: wanted[workdir] for workdir in open_runs}, _AT_ONCE.value)
    page = []
    for group in groups_of(list(map(read_run, wanted))):
        runs, data, excluded = rows_of(group), group[0].data, is_excluded(group[0])
        first = next(iter(runs))
        table, title = accuracy_table(runs, data, excluded, first), f"{data}{', seen items excluded' * excluded}"
        page.append(f"# {title}\n\n{table}\n")
        print(f"\n{title}, test\n\n{columns(table, [*_SHOWN, f'ndcg@10 against {first} [95 %]'])}")
    (folder / "comparison.md").write_text("\n".join(page), encoding="utf-8")
    print(f"\nall columns: {folder / 'comparison.md'}")


def groups_of(runs: list[Run]) -> list[list[Run]]:
    """The runs of each table: on one log, under one protocol, with seen items ranked or not.

    Raises:
      ResultsError: the log of a table changed between two of its runs.
    """
    groups = collections.defaultdict(list)
    for one in runs:
        groups[one.config["data"]["path"], one.data, is_excluded(one)].append(one)
    for group in groups.values():
        stored = [{"log_digest": one.log_digest, "config": one.config} for one in group]
        if any(itertools.starmap(tell_other_logs, itertools.combinations(stored, 2))):
            names = collections.defaultdict(list)
            for one in group:
                names[one.log_digest].append(one.folder.name)
            listed = "\n".join(f"  log {digest[:12]}: {', '.join(of)}" for digest, of in names.items())
            raise ResultsError(
                f"the log changed between these runs:\n{listed}\nMove the folders of all but one log away, or name "
                "another --workdir, and start again"
            )
    return list(groups.values())


def configs_of(wanted: dict[pathlib.Path, list[str]]) -> dict[pathlib.Path, Config]:
    """The configuration of each run: what is wrong with one shows before the first is trained.

    Raises:
      ConfigError: names the run.
    """
    configs = {}
    for workdir, words in wanted.items():
        try:
            configs[workdir] = config_of(words)
        except ConfigError as error:
            raise ConfigError(f"row {workdir.name}: {error}") from error
    return configs


def is_done(workdir: pathlib.Path, config: Config) -> bool:
    """Whether a run was trained and tested before.

    Raises:
      ConfigError: its folder is of another configuration.
    """
    if not (workdir / "config.json").exists():
        return False
    done = (workdir / "eval.json").exists()
    check_same_run(workdir, config, finished=done)
    if done:
        print(f"{workdir.name}: done before", flush=True)
    return done


def train_all(wanted: dict[pathlib.Path, list[str]], at_once: int) -> None:
    """Trains and tests runs, so many at a time. Where one fails no more are started, and the command ends as it did.

    When this command is stopped, what runs is told to save and stop, and is waited for.
    """
    children, runs = ChildRuns(), []
    pool = concurrent.futures.ThreadPoolExecutor(at_once)
    try:
        for number, (workdir, words) in enumerate(wanted.items(), start=1):
            place = f"run {number} of {len(wanted)}"
            runs.append(pool.submit(train, children, workdir, words, place, apart=at_once > 1))
        concurrent.futures.wait(runs)
    except (KeyboardInterrupt, Preempted):
        _stop(children, runs)
        raise
    finally:
        pool.shutdown()
    for run in runs:
        run.result()


def _stop(children: ChildRuns, runs: list[concurrent.futures.Future]) -> None:
    """Waits until what runs has saved and ended; a further Ctrl-C ends it at once."""
    children.stop()
    while True:
        try:
            concurrent.futures.wait(runs)
            return
        except Preempted:
            continue
        except KeyboardInterrupt:
            children.stop(signal.SIGKILL)
            raise


def train(children: ChildRuns, workdir: pathlib.Path, words: list[str], place: str, *, apart: bool) -> None:
    """Trains and tests one run, if none failed before; `apart`: what it prints goes to a file beside its folder."""
    if children.closed:
        return
    words = [*words, f"--workdir={workdir}"]
    call = [sys.executable, str(pathlib.Path(__file__).with_name("train.py")), *words]
    head = f"{workdir.name} ({place}): {shlex.join(words)}"
    if not apart:
        status = children.run(call, head)
    else:
        output = workdir.parent / f"{workdir.name}.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # else the first takes most of a GPU's memory
        with output.open("a", encoding="utf-8") as file:
            status = children.run(call, head, env=shared, stdout=file, stderr=subprocess.STDOUT)
    if status is None:
        return
    stopped = not (workdir / "eval.json").exists()  # by SIGTERM, at which a run saves what it has and ends well
    if status or stopped:
        children.close()
    if apart:
        print(f"{workdir.name}: {f'failed, see {output}' if status else 'stopped' if stopped else 'done'}", flush=True)
    if status:
        sys.exit(status)
    if stopped:
        sys.exit(f"{workdir.name} was stopped before its end: start the same command again, it goes on from there")


def _model(name: str) -> str:
    return f"{name}: --config.model.name={name}"


def _rows(texts: list[str]) -> dict[str, list[str]]:
    if not texts:
        raise app.UsageError("--models is empty and there is no --row: name at least one")
    rows: dict[str, list[str]] = {}
    for label, words in map(_row, texts):
        if not re.fullmatch(r"[\w.+-]+", label):
            raise app.UsageError(f"--row={label}: ...: a name is made of letters, digits and . + - _")
        if label in rows:
            raise app.UsageError(f"two rows are called {label}: give each a name of its own")
        rows[label] = words
    return rows


def _row(text: str) -> tuple[str, list[str]]:
    """("four_intents", its words) of "four intents: --config...."."""
    label, colon, words = text.partition(":")
    if not colon or not label.strip():
        raise app.UsageError(f"--row={text}: give its name, a colon, and --config.key=value as often as needed")
    return "_".join(label.split()), shlex.split(words)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(_CONFIG))
