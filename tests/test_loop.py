"""The training loop: its order, what stops it, and which checkpoint is tested in the end."""

import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t2diff_jax import evaluate, final, loop
from t2diff_jax.checkpoint import Checkpointer, CheckpointError
from t2diff_jax.config_values import ConfigError
from t2diff_jax.interrupt import Preempted
from t2diff_jax.workdir import claimed, open_workdir
from t2diff_jax.writer import MetricsWriter


@pytest.fixture(scope="module")
def compiled():
    """What all runs of this file share: the compiled step, the evaluator, the first state."""
    parts = tiny.build((1, 1), model__name="sasrec")
    return types.SimpleNamespace(
        step=parts.compile_step(),
        evaluator=parts.evaluator(),
        start=parts.initial_state(),
        abstract=parts.abstract_state,
    )


@pytest.fixture
def make(compiled):
    """Experiments of the tiny SASRec; what shapes nothing may be changed."""

    def build(step=None, **changes):
        parts = tiny.build((1, 1), model__name="sasrec", data__prefetch=0, **changes)
        replaced = {
            "compile_step": lambda: step or compiled.step,
            "evaluator": lambda: compiled.evaluator,
            "initial_state": lambda: jax.tree.map(jnp.copy, compiled.start),
        }
        for name, value in replaced.items():
            object.__setattr__(parts, name, value)
        return parts

    return build


def spoil(parts, bad_step):
    """The batch of a 0-based step gets weights that are no numbers."""
    make_batch = parts.host_batch_at

    def batch_at(step):
        batch = make_batch(step)
        return {**batch, "weight": np.full_like(batch["weight"], np.inf)} if step == bad_step else batch

    parts.__dict__["host_batch_at"] = batch_at
    return parts


def opened(workdir, parts):
    config = parts.config
    args = dict(keep=config.train.keep, select=config.eval.select, log_digest=parts.log.digest())
    return Checkpointer(workdir, **args)


def test_order(make, compiled, tmp_path, monkeypatch):
    events = []

    def note(owner, name, say):
        original = getattr(owner, name)

        def noting(self, *args, **kwargs):
            events.append(say(*args))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    def step(state, catalogue, batch):
        events.append(f"step {int(state.step) + 1}")
        return compiled.step(state, catalogue, batch)

    parts = make(step, train__steps=4, train__eval_every=2, train__checkpoint_every=3, train__log_every=1)
    make_batch = parts.host_batch_at
    parts.__dict__["host_batch_at"] = lambda step: (events.append(f"batch {step + 1}"), make_batch(step))[1]
    note(evaluate.Evaluator, "score_targets", lambda *_: "evaluate")
    note(Checkpointer, "save", lambda step, *_: f"save {step}")
    note(MetricsWriter, "write", lambda step, split, _: f"write {split} {step}")
    loop.train(parts, tmp_path)
    assert [event for event in events if event != "batch 1"] == [
        "step 1",
        "batch 2",
        "step 2",
        "write train 1",  # while step 2 runs
        "write train 2",  # before anything else happens to its state
        "evaluate",
        "write validation 2",
        "save 2",
        "batch 3",
        "step 3",
        "write train 3",
        "save 3",
        "batch 4",
        "step 4",
        "write train 4",
        "evaluate",
        "write validation 4",
        "save 4",
    ]


@pytest.mark.parametrize(
    ("number", "ends"),
    [
        (signal.SIGINT, (KeyboardInterrupt, "by Ctrl-C; step 2 is saved")),
        (signal.SIGTERM, (Preempted, "by SIGTERM; step 2 is saved")),
    ],
)
@pytest.mark.parametrize("during", [(evaluate.Evaluator, "score_targets"), (Checkpointer, "save")])
def test_what_is_asked_during_the_last_validation_or_save_is_obeyed(make, tmp_path, monkeypatch, during, number, ends):
    original = getattr(*during)

    def asking(*args, **kwargs):
        signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(*during, asking)
    parts = make(train__steps=2, train__eval_every=2, train__checkpoint_every=2)
    with pytest.raises(ends[0], match=ends[1]):
        loop.train(parts, tmp_path, {"command": "train.py"})
    with opened(tmp_path, parts) as checkpointer:
        assert checkpointer.steps() == [2]
    assert json.loads((tmp_path / "run.json").read_text()) == {"command": "train.py"}


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)])
def test_a_signal_before_the_first_step_says_that_nothing_was_done(make, tmp_path, monkeypatch, number, end):
    resume = loop.resume
    monkeypatch.setattr(loop, "resume", lambda *args: (signal.raise_signal(number), resume(*args))[1])
    with pytest.raises(end, match="before the first step; the same command starts the run"):
        loop.train(make(train__steps=2), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_two_trainings_do_not_share_a_workdir(make, compiled, tmp_path):
    parts = make(compiled.step, train__steps=2)
    told = rf"run is in use by another training \(process {os.getpid()} on .+\): stop it"
    with claimed(tmp_path / "run"), pytest.raises(CheckpointError, match=told):
        loop.train(parts, tmp_path / "run")
    assert [child.name for child in (tmp_path / "run").iterdir()] == ["lock"]
    loop.train(parts, tmp_path / "run")


def test_a_finished_run_is_not_cut_short(make, compiled, tmp_path, capsys):
    loop.train(make(compiled.step, train__steps=4), tmp_path)
    before = tiny.snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"config.train.steps: .* holds step 4 already, 3 are fewer: set at least 4"):
        loop.train(make(compiled.step, train__steps=3), tmp_path)
    assert tiny.snapshot(tmp_path) == before
    loop.train(make(compiled.step, train__steps=6), tmp_path)
    assert "not the run" not in capsys.readouterr().out  # the rate of the tiny run is constant
    assert tiny.metrics(tmp_path)[-1]["step"] == 6


def test_more_steps_under_a_decay_to_the_last_are_told(make, tmp_path, capsys):
    decays = dict(optim__decay="cosine")
    loop.train(make(train__steps=2, **decays), tmp_path)
    loop.train(make(train__steps=2, **decays), tmp_path)
    assert "train.steps" not in capsys.readouterr().out
    loop.train(make(train__steps=3, **decays), tmp_path)
    assert "train.steps: 2 before, 3 now, where the learning rate comes to 0" in capsys.readouterr().out


def test_a_batch_that_does_not_divide_by_the_devices_is_refused_where_it_trains(tmp_path):
    """An evaluation on as many devices is free to go on."""
    parts = tiny.build(model__name="sasrec", train__batch_size=12)
    with pytest.raises(ConfigError, match=r"config.train.batch_size: 12 does not divide by the 8 devices"):
        loop.train(parts, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert parts.abstract_state.params


def test_means_are_over_the_steps_since_the_last_line_or_checkpoint(make, tmp_path):
    intervals = dict(train__steps=8, train__eval_every=8)
    loop.train(make(**intervals, train__log_every=1, train__checkpoint_every=8), tmp_path / "each")
    loss = {line["step"]: line["loss"] for line in tiny.metrics(tmp_path / "each") if line["split"] == "train"}
    assert sorted(loss) == list(range(1, 9))
    loop.train(make(**intervals, train__log_every=4, train__checkpoint_every=3), tmp_path / "means")
    lines = {line["step"]: line["loss"] for line in tiny.metrics(tmp_path / "means") if line["split"] == "train"}
    expected = {4: [loss[4]], 8: [loss[7], loss[8]]}  # a run resumed from 3 or 6 would know no more
    assert lines == pytest.approx({step: np.mean(values) for step, values in expected.items()})


def test_divergence_names_the_step_and_leaves_the_checkpoints(make, compiled, tmp_path):
    with pytest.raises(loop.DivergenceError, match=r"^step 6: loss .*The checkpoint of step 4 is good; lower optim"):
        loop.train(spoil(make(), 5), tmp_path)
    assert not list(tmp_path.glob("checkpoints/*tmp*"))
    before = tiny.snapshot(tmp_path / "checkpoints")
    parts = make()
    with opened(tmp_path, parts) as checkpointer:
        assert checkpointer.steps() == [2, 4]
        good = checkpointer.restore(4, compiled.abstract)
    assert tiny.snapshot(tmp_path / "checkpoints") == before
    assert max(line["step"] for line in tiny.metrics(tmp_path)) <= 5

    loop.train(parts, tmp_path)  # the cause is gone
    loop.train(make(), tmp_path / "never")
    with opened(tmp_path, parts) as a, opened(tmp_path / "never", parts) as b:
        assert np.isfinite(good.params["items"]["item_table"]).all()
        tiny.assert_same_bits(a.restore(8, compiled.abstract), b.restore(8, compiled.abstract))
    assert tiny.metrics(tmp_path) == tiny.metrics(tmp_path / "never")


def test_divergence_at_once_says_that_nothing_was_saved(make, tmp_path):
    with pytest.raises(loop.DivergenceError, match=r"^step 1: .*No checkpoint was saved yet"):
        loop.train(spoil(make(), 0), tmp_path)


def test_a_huge_learning_rate_is_told_at_the_first_bad_step(tmp_path):
    parts = tiny.build((1, 1), model__name="sasrec", optim__learning_rate=1e30, optim__warmup=0, train__log_every=1)
    step, state = parts.compile_step(), parts.initial_state()
    object.__setattr__(parts, "compile_step", lambda: step)
    for first_bad in range(1, 9):
        state, metrics = step(state, parts.catalogue, parts.batch_at(first_bad - 1))
        if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
            break
    with pytest.raises(loop.DivergenceError, match=rf"^step {first_bad}: "):
        loop.train(parts, tmp_path)
    assert [line["step"] for line in tiny.metrics(tmp_path)] == list(range(1, first_bad))


@pytest.mark.parametrize(
    ("value", "told"), [(np.inf, "a parameter is not finite"), (1e30, "a score of the validation is not finite")]
)
def test_a_state_that_is_not_finite_does_not_become_a_checkpoint(make, compiled, tmp_path, value, told):
    def step(state, catalogue, batch):
        state, metrics = compiled.step(state, catalogue, batch)
        if state.step != 4:
            return state, metrics
        return state._replace(params=jax.tree.map(lambda leaf: leaf + value, state.params)), metrics

    with pytest.raises(loop.DivergenceError, match=rf"^step 4: {told}.*The checkpoint of step 2 is good"):
        loop.train(make(step), tmp_path)
    with opened(tmp_path, make()) as checkpointer:
        assert checkpointer.steps() == [2]


def test_the_best_by_validation_is_tested(make, tmp_path, monkeypatch, capsys):
    values = iter([0.1, 0.3, 0.2])

    def summarise(scores, targets, ks):
        names = [f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in ks]
        return dict.fromkeys(names, (next(values), 0.0))

    parts = make(train__steps=6, train__eval_every=2, train__keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "summarise", summarise)
        loop.train(parts, tmp_path)
    assert final.restore(parts, tmp_path, None)[1] == 4
    found = final.evaluate_checkpoint(parts, tmp_path, None)
    assert found["step"] == 4 and "checkpoint of step 4" in capsys.readouterr().out
    assert final.evaluate_checkpoint(parts, tmp_path, 6)["step"] == 6
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; present: 4, 6"):
        final.evaluate_checkpoint(parts, tmp_path, 5)


def test_a_damaged_checkpoint_does_not_hide_the_others(make, tmp_path):
    parts = make(train__steps=4)
    loop.train(parts, tmp_path)
    (tmp_path / "checkpoints" / "2" / "manifest" / "metadata").write_text("{}")
    assert final.restore(parts, tmp_path, 4)[1] == 4
    with pytest.raises(CheckpointError, match="manifest of the checkpoint of step 2"):
        final.restore(parts, tmp_path, None)


def test_no_steps_at_all(make, compiled, tmp_path):
    parts = make(train__steps=0)
    loop.train(parts, tmp_path)
    state, step = final.restore(parts, tmp_path, None)
    assert step == 0
    tiny.assert_same_bits(state, compiled.start)
    assert [(line["step"], line["split"]) for line in tiny.metrics(tmp_path)] == [(0, "validation")]
    assert final.evaluate_checkpoint(parts, tmp_path, None)["step"] == 0


def test_before_the_first_validation_the_latest_is_tested(make, compiled, tmp_path):
    """As of a run that was told to stop early: it saved, and nothing says yet which step is best."""
    parts = make()
    with opened(tmp_path, parts) as checkpointer:
        for step in (1, 3):
            checkpointer.save(step, compiled.start, {})
    assert final.restore(parts, tmp_path, None)[1] == 3


def test_without_a_checkpoint_there_is_nothing_to_test(make, tmp_path):
    parts = make()
    open_workdir(tmp_path, parts.config, parts.log.digest())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint yet: train first"):
        final.restore(parts, tmp_path, None)
    assert json.loads((tmp_path / "config.json").read_text())["log_digest"] == parts.log.digest()


def test_speed_leaves_out_compilation_and_evaluation(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock.now)
    meter = loop._Meter(batch_size=10, start=100, steps=200)
    for step in range(101, 112):
        clock.now += 60.0 if step == 101 else 0.5
        meter.add(step, {"loss": 0.0})
    with meter.paused():
        clock.now += 1000.0
    assert meter.speed(111) == (20.0, (200 - 111) * 0.5)
    first = loop._Meter(batch_size=10, start=0, steps=5)
    first.add(1, {"loss": 0.0})
    assert np.isnan(first.speed(1)).all()
