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
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from absl import app, flags
from ml_collections import config_flags

from t2diff_jax.command_line import parser
from t2diff_jax.explain import explained
from t2diff_jax.results.runs import ResultsError, Run, is_excluded, read_run, rows_of
from t2diff_jax.results.tables import accuracy_table, columns
from t2diff_jax.workdir import tell_other_logs

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
    with explained(on_interrupt="stopped; the same command goes on"):
        run(pathlib.Path(_WORKDIR.value), _rows([*map(_model, _MODELS.value), *_ROW.value]))


def run(folder: pathlib.Path, rows: dict[str, list[str]]) -> None:
    """Trains what is not there yet; prints and writes the tables. rows: what sets a row apart, by its label."""
    given = flags.FLAGS["config"]
    shared = [f"--config={config_flags.get_config_filename(given)}"]
    shared += [f"--config.{key}={value}" for key, value in config_flags.get_override_values(given).items()]
    wanted = {
        folder / f"{label}_seed{seed}": [*shared, *own, f"--config.seed={seed}"]
        for label, own in rows.items()
        for seed in range(_SEEDS.value)
    }
    train_all({workdir: words for workdir, words in wanted.items() if not is_done(workdir, words)}, _AT_ONCE.value)
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


def is_done(workdir: pathlib.Path, words: list[str]) -> bool:
    """Whether a run was trained and tested before. Exits where that was with other words: it is not of this table."""
    if not (workdir / "eval.json").exists():
        return False
    before = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["command"]
    if before != shlex.join(["python", "train.py", *_to(workdir, words)]):
        sys.exit(f"{workdir} was made by\n  {before}\nand not with these settings: name another --workdir")
    print(f"{workdir.name}: done before", flush=True)
    return True


def train_all(wanted: dict[pathlib.Path, list[str]], at_once: int) -> None:
    """Trains and tests runs, so many at a time. Where one fails no more are started, and the command ends as it did."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        runs = [pool.submit(train, workdir, words, apart=at_once > 1) for workdir, words in wanted.items()]
        try:
            for run in concurrent.futures.as_completed(runs):
                run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train(workdir: pathlib.Path, words: list[str], *, apart: bool) -> None:
    """Trains and tests one run; `apart`: what it prints goes to a file beside its folder."""
    words = _to(workdir, words)
    print(f"{workdir.name}: {shlex.join(words)}", flush=True)
    call = [sys.executable, str(pathlib.Path(__file__).with_name("train.py")), *words]
    if not apart:
        status = subprocess.run(call).returncode
    else:
        output = workdir.parent / f"{workdir.name}.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # else the first takes most of a GPU's memory
        with output.open("a", encoding="utf-8") as file:
            status = subprocess.run(call, env=shared, stdout=file, stderr=subprocess.STDOUT).returncode
    stopped = not (workdir / "eval.json").exists()  # by SIGTERM, at which a run saves what it has and ends well
    if apart:
        print(f"{workdir.name}: {f'failed, see {output}' if status else 'stopped' if stopped else 'done'}", flush=True)
    if status:
        sys.exit(status)
    if stopped:
        sys.exit(f"{workdir.name} was stopped before its end: start the same command again, it goes on from there")


def _to(workdir: pathlib.Path, words: list[str]) -> list[str]:
    return [*words, f"--workdir={workdir}"]


def _model(name: str) -> str:
    return f"{name}: --config.model.name={name}"


def _rows(texts: list[str]) -> dict[str, list[str]]:
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
