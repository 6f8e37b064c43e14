"""Several models on one log by one command."""

import shutil
import subprocess
import sys

import pytest
import tiny
from tiny import shared_compiles  # noqa: F401

from t2diff_jax.results.tables import columns

pytestmark = pytest.mark.usefixtures("shared_compiles")  # the two rows have the same programs


def run(folder, *flags):
    shared = ["--config", tiny.CONFIG, "--config.eval.noise_keys=1", f"--workdir={folder}"]
    command = [sys.executable, "compare.py", *shared, *flags]
    return subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=600)


TRAINED_AT_ONCE = """
import json, os, pathlib, shlex, sys
from test_results import evaluation, make_run

words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
if os.environ["MODE"] == "stopped":
    sys.exit(0)
folder, excluded = pathlib.Path(words["workdir"]), words.get("config.eval.exclude_seen") == "True"
make_run(folder, [evaluation(0.2, excluded=excluded)], ranks=[1.0, 2.0], log=os.environ["MODE"])
origin = json.loads((folder / "run.json").read_text())
origin["command"] = shlex.join(["python", "train.py", *sys.argv[1:]])
(folder / "run.json").write_text(json.dumps(origin))
"""


@pytest.fixture
def quickly(tmp_path):
    """compare.py beside a train.py that writes a made up run on a log of a given digest, or is stopped."""
    shutil.copy(tiny.ROOT / "compare.py", tmp_path)
    (tmp_path / "train.py").write_text(TRAINED_AT_ONCE)

    def run(mode, *flags):
        command = [sys.executable, tmp_path / "compare.py", f"--config={tiny.CONFIG}", f"--workdir={tmp_path / 'runs'}"]
        where = {"PYTHONPATH": f"{tiny.ROOT}:{tiny.ROOT / 'tests'}", "MODE": mode}
        env = tiny.environment() | where
        return subprocess.run([*command, *flags], cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=600)

    return run


def test_a_log_that_changed_between_two_calls_is_noticed(quickly):
    done = quickly("log one", "--models=caser")
    assert done.returncode == 0, done.stdout + done.stderr
    done = quickly("log two", "--models=caser,sasrec")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ResultsError: the log changed between these runs:" in done.stderr
    assert "  log log one: caser_seed0\n  log log two: sasrec_seed0\nMove the folders" in done.stderr


def test_rows_that_are_tested_in_another_way_have_a_table_of_their_own(quickly, tmp_path):
    flags = ("--models=caser,sasrec", *(f"--row={x}: --config.eval.exclude_seen=True" for x in ("new caser", "new")))
    done = quickly("log", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    ranked, excluded = done.stdout.split(", seen items excluded, test\n")
    assert "\ncaser " in ranked and "\nsasrec " in ranked and "ndcg@10 against caser [95 %]" in ranked
    assert "\nnew_caser " in excluded and "\nnew " in excluded and "ndcg@10 against new_caser [95 %]" in excluded
    assert (tmp_path / "runs" / "comparison.md").read_text().count("| popularity |") == 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_run_that_was_stopped_is_not_done(quickly, at_once):
    done = quickly("stopped", "--models=caser", f"--at_once={at_once}")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "caser_seed0: done" not in done.stdout
    assert "caser_seed0 was stopped before its end: start the same command again" in done.stderr


def test_rows_of_models_and_of_flags(tmp_path):
    flags = ("--models=caser", "--row=narrow caser: --config.model.name=caser --config.model.hidden=4")
    done = run(tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["caser_seed0", "comparison.md", "narrow_caser_seed0"]
    table = done.stdout[done.stdout.index("\nrow ") :].splitlines()
    assert {line.split()[0] for line in table[3:5]} == {"caser", "narrow_caser"} and "popularity" in table[5]
    assert "[95 %]" in table[1]
    other = run(tmp_path, *flags, "--config.train.steps", "6")
    assert other.returncode == 1 and "caser_seed0 was made by\n  python train.py" in other.stderr
    assert "name another --workdir" in other.stderr and "Traceback" not in other.stderr
    again = run(tmp_path, *flags)
    assert again.returncode == 0 and "caser_seed0: done before" in again.stdout
    assert again.stdout[again.stdout.index("\nrow ") :] == done.stdout[done.stdout.index("\nrow ") :]


def test_several_at_once(tmp_path):
    done = run(tmp_path, "--models=caser", "--seeds=2", "--at_once=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "caser_seed0: done\n" in done.stdout and "caser_seed1: done\n" in done.stdout and "loss" not in done.stdout
    for seed in (0, 1):
        assert "recall@10" in (tmp_path / f"caser_seed{seed}.log").read_text()
    row = next(line for line in done.stdout.splitlines() if line.startswith("caser "))
    assert row.split()[1] == "2"
    failed = run(tmp_path / "other", "--models=caser,sasrec,gru4rec", "--config.model.hidden=0", "--at_once=2")
    assert failed.returncode == 1 and "failed, see" in failed.stdout and not list(tmp_path.glob("other/*/eval.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--row=nameless"], "give its name, a colon"),
        (["--row=w/o item: --config.seed=1"], "a name is made of letters, digits"),
        (["--row=a|b: --config.seed=1"], "a name is made of letters, digits"),
        (["--models=caser", "--row=caser: --config.model.hidden=4"], "two rows are called caser"),
        (["--row=one: --config.seed=1", "--row=one: --config.seed=2"], "two rows are called one"),
        (["--models=transformer9"], "config.model.name: 'transformer9'"),
    ],
)
def test_what_cannot_be_a_row(tmp_path, flags, message):
    done = run(tmp_path / "none", *flags)
    assert done.returncode != 0 and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_some_columns_of_a_table():
    table = "| a | b | c |\n| --- | --- | --- |\n| 1 | long one | 3 |\n| 4 |  | 66 |"
    assert columns(table, ["c", "b"]) == "c   b\n-----\n3   long one\n66"
