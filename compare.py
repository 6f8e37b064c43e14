"""Trains a set of models on one log, each as train.py would, and prints one table of them.

python compare.py --config configs/table.py --config.data.path=LOG.csv --workdir runs/own --seeds=3
python compare.py --config configs/table.py --config.data.path=LOG.csv --workdir runs/own --models=sasrec,gru4rec \
    --row="four intents: --config.model.name=t2diff_causal --config.diffusion.samples=4 ..."

What is finished is not trained again: start it again after a stop, or with more models or seeds.
"""

import json
import pathlib
import shlex
import subprocess
import sys

from absl import app, flags
from ml_collections import config_flags

from t2diff_jax.command_line import parser
from t2diff_jax.results.runs import read_runs, rows_of
from t2diff_jax.results.tables import accuracy_table, columns

_CONFIG = config_flags.DEFINE_config_file("config", None, "What all models share; override with --config.key=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, and of the table: comparison.md.")
_MODELS = flags.DEFINE_list("models", ["t2diff_causal", "sasrec"], "Models of model.name, a row each.")
_ROW = flags.DEFINE_multi_string("row", [], "A further row: its name, a colon, and what sets it apart.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Training seeds a row, from 0.", lower_bound=1)
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
    """One process a run, one after another; then the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    folder, rows = pathlib.Path(_WORKDIR.value), dict(_row(text) for text in (*map(_model, _MODELS.value), *_ROW.value))
    given = flags.FLAGS["config"]
    shared = [f"--config={config_flags.get_config_filename(given)}"]
    shared += [f"--config.{key}={value}" for key, value in config_flags.get_override_values(given).items()]
    for label, own in rows.items():
        for seed in range(_SEEDS.value):
            train(folder / f"{label}_seed{seed}", [*shared, *own, f"--config.seed={seed}"])
    runs = rows_of(run for run in read_runs(folder) if run.label in rows)
    first = next(iter(rows))
    data, excluded = runs[first][0].data, runs[first][0].config["eval"]["exclude_seen"]
    table = accuracy_table(runs, data, excluded, first)
    (folder / "comparison.md").write_text(f"# {data}\n\n{table}\n", encoding="utf-8")
    shown = [*_SHOWN, f"ndcg@10 against {first} [95 %]"]
    print(f"\n{data}, test\n\n{columns(table, shown)}\n\nall columns: {folder / 'comparison.md'}")


def train(workdir: pathlib.Path, words: list[str]) -> None:
    """Trains and tests one run unless that is done; ends with its status where it fails.

    Exits where the run was made with other words: it does not belong in the table.
    """
    words = [*words, f"--workdir={workdir}"]
    if (workdir / "eval.json").exists():
        before = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["command"]
        if before != shlex.join(["python", "train.py", *words]):
            sys.exit(f"{workdir} was made by\n  {before}\nand not with these settings: name another --workdir")
        print(f"{workdir.name}: done before", flush=True)
        return
    print(f"{workdir.name}: {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, str(pathlib.Path(__file__).with_name("train.py")), *words])
    if done.returncode:
        sys.exit(done.returncode)


def _model(name: str) -> str:
    return f"{name}: --config.model.name={name}"


def _row(text: str) -> tuple[str, list[str]]:
    """("four_intents", its words) of "four intents: --config...."."""
    label, colon, words = text.partition(":")
    if not colon or not label.strip():
        raise app.UsageError(f"--row={text}: give its name, a colon, and --config.key=value as often as needed")
    return "_".join(label.split()), shlex.split(words)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parser(_CONFIG))
