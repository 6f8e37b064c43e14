"""A run that was killed, again and again, ends with the same bits as one that was not; another run is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny
from tiny import shared_compiles  # noqa: F401

from t2diff_jax import loop
from t2diff_jax.checkpoint import Checkpointer, CheckpointError
from t2diff_jax.config_values import ConfigError

pytestmark = pytest.mark.usefixtures("shared_compiles")
# Intervals that do not divide each other; an average and dropout, which a resumed run must carry on.
CHANGES = {"optim.ema": 0.9, "train.log_every": 3, "train.checkpoint_every": 4, "train.eval_every": 8}
FLAGS = (*(f"--config.{name}={value}" for name, value in CHANGES.items()), "--config.eval.popularity=False")
STEPS, FIRST_STEPS = 48, 24


def stop_when(ready, workdir, *flags, how=signal.SIGKILL):
    """Starts training and sends it a signal at the moment when `ready()`: (return code, what it said last)."""
    args = tiny.arguments("train.py", workdir, *flags)
    options = dict(cwd=tiny.ROOT, env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(args, **options) as process:
        while process.poll() is None and not ready():
            time.sleep(0.001)
        process.send_signal(how)
        said = process.communicate(timeout=300)[1]
    return process.returncode, said


def reached(workdir, step):
    """Whether a step is logged."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return any(line.startswith('{"step": ') and int(line[9 : line.index(",")]) >= step for line in lines)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "never_stopped"
    tiny.succeed("train.py", workdir, *FLAGS, f"--config.train.steps={STEPS}")
    return workdir


@pytest.fixture(scope="module")
def often_stopped(tmp_path_factory):
    """Run to half the steps; then killed at a random step, during a save, and at another step; then left."""
    workdir, generator = tmp_path_factory.mktemp("runs") / "often_stopped", random.Random(0)
    tiny.succeed("train.py", workdir, *FLAGS, f"--config.train.steps={FIRST_STEPS}")
    flags = (*FLAGS, f"--config.train.steps={STEPS}")
    early, late = generator.randint(25, 32), generator.randint(37, 44)
    left_behind = set()

    def saving():
        return any("tmp" in name and name not in left_behind for name in os.listdir(workdir / "checkpoints"))

    kills = [stop_when(lambda: reached(workdir, early), workdir, *flags)[0]]
    left_behind.update(os.listdir(workdir / "checkpoints"))
    kills.append(stop_when(saving, workdir, *flags)[0])
    before = (workdir / "metrics.jsonl").read_text()

    def training():  # the killed run may have logged that step already: it must be this one that has
        return (workdir / "metrics.jsonl").read_text() != before and reached(workdir, late)

    kills.append(stop_when(training, workdir, *flags)[0])
    assert kills == [-signal.SIGKILL] * 3
    output = tiny.succeed("train.py", workdir, *flags)
    assert "resuming from step" in output
    return workdir


def last_state(workdir):
    parts = tiny.build((1, 1), **{name.replace(".", "__"): value for name, value in CHANGES.items()})
    args = dict(keep=2, select="ndcg@10", log_digest=parts.log.digest(), read_only=True)
    with Checkpointer(workdir, **args) as checkpointer:
        return checkpointer.restore(STEPS, parts.abstract_state), checkpointer.steps(), checkpointer.best_step()


def test_the_last_checkpoint_has_the_same_bits(never_stopped, often_stopped):
    (expected, *steps), (found, *found_steps) = last_state(never_stopped), last_state(often_stopped)
    assert found.step == STEPS and found.ema is not None
    tiny.assert_same_bits(found, expected)
    assert found_steps == steps


def test_metrics_and_results_are_the_same(never_stopped, often_stopped):
    expected = tiny.metrics(never_stopped)
    assert tiny.metrics(often_stopped) == expected
    steps = [line["step"] for line in expected if line["split"] == "train"]
    assert steps == list(range(3, STEPS + 1, 3))
    assert tiny.result(often_stopped) == tiny.result(never_stopped)
    with np.load(never_stopped / "test_ranks.npz") as a, np.load(often_stopped / "test_ranks.npz") as b:
        tiny.assert_same_bits(dict(a), dict(b))


def test_nothing_is_left_of_a_torn_save(often_stopped):
    assert all(child.name.isdigit() for child in (often_stopped / "checkpoints").iterdir())
    assert json.loads((often_stopped / "config.json").read_text())["config"]["train"]["steps"] == STEPS


@pytest.mark.parametrize(("how", "name", "status"), [(signal.SIGTERM, "SIGTERM", 0), (signal.SIGINT, "Ctrl-C", 1)])
def test_a_signal_saves(tmp_path, never_stopped, how, name, status):
    """At any step, also none that saves; the run that goes on ends with the bits of one that was left alone."""
    workdir = tmp_path / "preempted"
    flags = (*FLAGS, f"--config.train.steps={STEPS}")
    code, said = stop_when(lambda: reached(workdir, 9), workdir, *flags, how=how)
    assert code == status and "Traceback" not in said, said
    saved = max(int(child.name) for child in (workdir / "checkpoints").iterdir())
    assert f"stopped by {name}; step {saved} is saved" in said and 9 <= saved < STEPS
    assert f"resuming from step {saved}" in tiny.succeed("train.py", workdir, *flags)
    tiny.assert_same_bits(last_state(workdir)[0], last_state(never_stopped)[0])
    validated = [line for line in tiny.metrics(workdir) if line["split"] == "validation"]
    assert validated == [line for line in tiny.metrics(never_stopped) if line["split"] == "validation"]


def changed(**changes):
    names = {name.replace(".", "__"): value for name, value in CHANGES.items()}
    return tiny.build(**{**names, "train__steps": STEPS, **changes})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model__dropout": 0.2}, r"model.dropout: 0.1 there, 0.2 now"),
        ({"optim__ema": 0.5}, r"optim.ema: 0.9 there, 0.5 now"),
        ({"data__synthetic__n_users": 90}, r"data.synthetic.n_users: 80 there, 90 now"),
        ({"train__batch_size": 32}, r"train.batch_size: 16 there, 32 now"),
        ({"eval__exclude_seen": True}, r"eval.exclude_seen: False there, True now"),
    ],
)
def test_another_setting_is_refused_by_its_name(often_stopped, change, told):
    before = tiny.snapshot(often_stopped)
    with pytest.raises(ConfigError, match=told):
        loop.train(changed(**change), often_stopped)
    assert tiny.snapshot(often_stopped) == before


def test_another_log_is_refused(often_stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(often_stopped, workdir)
    file = workdir / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "log_digest": "0" * 64}))
    before = tiny.snapshot(workdir)
    with pytest.raises(CheckpointError, match=r"another interaction log \(digest 0000"):
        loop.train(changed(), workdir)
    assert tiny.snapshot(workdir) == before
