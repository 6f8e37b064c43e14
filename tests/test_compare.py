"""Several models on one log by one command."""

import os
import shutil
import signal
import subprocess
import sys
import time

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
import json, os, pathlib, signal, sys, time
from test_results import evaluation, make_run

from t2diff_jax.command_line import config_of
from t2diff_jax.config_values import to_dict

folder = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
mode = os.environ["MODE"]
if mode == "stopped":
    sys.exit(0)
if mode == "one fails" and folder.name == "caser_seed0":
    sys.exit(3)
if mode in ("waits", "one fails"):
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (folder / "saved").touch(), sys.exit(0)))
    (folder / "started").touch()
    time.sleep(100)
config = config_of(sys.argv[1:-1])
make_run(folder, [evaluation(0.2, excluded=config.eval.exclude_seen)], ranks=[1.0, 2.0])
(folder / "config.json").write_text(json.dumps({"log_digest": mode, "config": to_dict(config)}))
"""


@pytest.fixture
def quickly(tmp_path):
    """compare.py beside a train.py that writes a made up run on a log of a given digest, or is stopped."""
    shutil.copy(tiny.ROOT / "compare.py", tmp_path)
    (tmp_path / "train.py").write_text(TRAINED_AT_ONCE)

    def start(mode, *flags, hangup=signal.SIG_DFL):
        """hangup: what it does at SIGHUP, whatever these tests were started with (nohup)."""
        command = [sys.executable, tmp_path / "compare.py", f"--config={tiny.CONFIG}", f"--workdir={tmp_path / 'runs'}"]
        env = tiny.environment() | {"PYTHONPATH": f"{tiny.ROOT}:{tiny.ROOT / 'tests'}", "MODE": mode}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        before = signal.signal(signal.SIGHUP, hangup)  # a process inherits it
        try:
            return subprocess.Popen([*command, *flags], cwd=tiny.ROOT, env=env, **pipes)
        finally:
            signal.signal(signal.SIGHUP, before)

    return start


def ended(process):
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_log_that_changed_between_two_calls_is_noticed(quickly):
    done = ended(quickly("log one", "--models=caser"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = ended(quickly("log two", "--models=caser,sasrec"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ResultsError: the log changed between these runs:" in done.stderr
    assert "  log log one: caser_seed0\n  log log two: sasrec_seed0\nMove the folders" in done.stderr


def test_rows_that_are_tested_in_another_way_have_a_table_of_their_own(quickly, tmp_path):
    flags = ("--models=caser,sasrec", *(f"--row={x}: --config.eval.exclude_seen=True" for x in ("new caser", "new")))
    done = ended(quickly("log", *flags))
    assert done.returncode == 0, done.stdout + done.stderr
    ranked, excluded = done.stdout.split(", seen items excluded, test\n")
    assert "\ncaser " in ranked and "\nsasrec " in ranked and "ndcg@10 against caser [95 %]" in ranked
    assert "\nnew_caser " in excluded and "\nnew " in excluded and "ndcg@10 against new_caser [95 %]" in excluded
    assert (tmp_path / "runs" / "comparison.md").read_text().count("| popularity |") == 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_run_that_was_stopped_is_not_done(quickly, at_once):
    done = ended(quickly("stopped", "--models=caser", f"--at_once={at_once}"))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "caser_seed0: done" not in done.stdout
    assert "caser_seed0 was stopped before its end: start the same command again" in done.stderr


def wait_for(file, process):
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM],
        [signal.SIGINT],
        [signal.SIGHUP],
        [signal.SIGTERM, signal.SIGHUP],
        [signal.SIGINT, signal.SIGTERM],
    ],
)
def test_signals_to_the_comparison_alone_stop_its_runs_with_what_they_have(quickly, tmp_path, numbers, at_once):
    process = quickly("waits", "--models=caser,sasrec,hstu", f"--at_once={at_once}")
    first = tmp_path / "runs" / "caser_seed0"
    wait_for(first / "started", process)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    done = ended(process)
    assert (first / "saved").exists() and not (tmp_path / "runs" / "hstu_seed0").exists()
    assert (done.returncode == 0) == (signal.SIGINT not in numbers)  # Ctrl-C also ends what called this command
    assert "stopped; the same command goes on" in done.stderr and "Traceback" not in done.stderr


def test_where_one_fails_no_more_are_started(quickly, tmp_path):
    done = ended(quickly("one fails", "--models=caser,sasrec"))
    assert done.returncode == 3 and "caser_seed0 (run 1 of 2): " in done.stdout and "run 2 of 2" not in done.stdout
    assert not (tmp_path / "runs" / "sasrec_seed0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_one_has_failed_the_others_can_still_be_stopped(quickly, tmp_path, number):
    process = quickly("one fails", "--models=sasrec,caser,hstu", "--at_once=2")
    other = tmp_path / "runs" / "sasrec_seed0"
    wait_for(other / "started", process)
    while "failed, see" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    done = ended(process)
    assert (other / "saved").exists() and not (tmp_path / "runs" / "hstu_seed0").exists()
    assert "stopped; the same command goes on" in done.stderr and "Traceback" not in done.stderr


def test_what_is_to_be_ignored_is_ignored(quickly, tmp_path):
    process = quickly("waits", "--models=caser", hangup=signal.SIG_IGN)  # as nohup does
    folder = tmp_path / "runs" / "caser_seed0"
    wait_for(folder / "started", process)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    assert ended(process).returncode == 0 and (folder / "saved").exists()


def test_a_second_interrupt_ends_runs_that_do_not_stop(quickly, tmp_path):
    (tmp_path / "train.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "time.sleep(100)\n"
    )
    process, started = quickly("", "--models=caser"), tmp_path / "pid"
    while not (started.exists() and started.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert ended(process).returncode == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_what_is_wrong_with_a_row_shows_before_the_first_is_trained(tmp_path):
    rows = ("--row=narrow: --config.model.hiden=4", "--row=two: --config.model.heads=3", "--row=x: --steps=4")
    for row, message in zip(rows, ("did you mean config.model.hidden", "must divide model.dim", "steps"), strict=True):
        done = run(tmp_path / "none", "--models=caser", row)
        assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "none").exists()
        assert f"ConfigError: row {row[6:].split(':')[0]}_seed0: " in done.stderr and message in done.stderr


def test_rows_of_models_and_of_flags(tmp_path):
    flags = ("--models=caser", "--row=narrow caser: --config.model.name=caser --config.model.hidden=4")
    done = run(tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["caser_seed0", "comparison.md", "narrow_caser_seed0"]
    table = done.stdout[done.stdout.index("\nrow ") :].splitlines()
    assert {line.split()[0] for line in table[3:5]} == {"caser", "narrow_caser"} and "popularity" in table[5]
    assert "[95 %]" in table[1]
    other = run(tmp_path, *flags, "--config.train.steps", "6")
    assert other.returncode == 1
    assert "caser_seed0 was made with other settings:\n  train.steps: 8 there, 6 now" in other.stderr
    assert "Name another --workdir" in other.stderr and "Traceback" not in other.stderr
    again = run(tmp_path, *reversed(flags), "--config.eval.block=32")
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
    failed = run(tmp_path / "other", "--models=caser,sasrec,gru4rec", "--config.data.source=table", "--at_once=2")
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
        (["--row=x: --config.seed=9"], "as many as --seeds says"),
        (["--config.seed=9"], "as many as --seeds says"),
        (["--models="], "--models is empty and there is no --row"),
    ],
)
def test_what_cannot_be_a_row(tmp_path, flags, message):
    done = run(tmp_path / "none", *flags)
    assert done.returncode != 0 and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_some_columns_of_a_table():
    table = "| a | b | c |\n| --- | --- | --- |\n| 1 | long one | 3 |\n| 4 |  | 66 |"
    assert columns(table, ["c", "b"]) == "c   b\n-----\n3   long one\n66"
