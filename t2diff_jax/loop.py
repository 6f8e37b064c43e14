"""The training loop. Its order is fixed: resume; evaluate, save, obey Ctrl-C and SIGTERM, next batch, step, log."""

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2diff_jax.checkpoint import Checkpointer
from t2diff_jax.data.batches import prefetch
from t2diff_jax.experiment import Experiment
from t2diff_jax.interrupt import Preempted, StopRequest
from t2diff_jax.report import summarise
from t2diff_jax.sharding import check_batch
from t2diff_jax.train_state import TrainState
from t2diff_jax.workdir import claimed, open_workdir
from t2diff_jax.writer import MetricsWriter, progress_line, say, write_json


class DivergenceError(FloatingPointError):
    """The loss or the gradient of a step is not finite; the message names the step and the last good checkpoint."""


def train(experiment: Experiment, workdir: pathlib.Path, origin: dict[str, Any] | None = None) -> None:
    """Trains to `train.steps` from the latest checkpoint in `workdir` (or the start), keeping the best by validation.

    A run that was stopped at any time and started again ends with the same bits as one that was not.

    origin: what `provenance` says of this start; it is in `run.json` from the first moment on.

    Raises:
      ConfigError: the batch does not divide by the devices, or the workdir is of other settings. No run is changed.
      CheckpointError: another process trains in the workdir, or as `open_workdir`.
      DivergenceError: checkpoints saved before stay as they are.
      KeyboardInterrupt: after Ctrl-C, between two steps, with a checkpoint but where processes have joined.
      Preempted: after SIGTERM, between two steps, with a checkpoint.
    """
    config, digest = experiment.config, experiment.log.digest()
    check_batch(experiment.mesh, config.train.batch_size, "config.train.batch_size")
    with claimed(workdir):
        open_workdir(workdir, config, digest)
        if origin and jax.process_index() == 0:
            write_json(workdir / "run.json", origin)
        with (
            StopRequest() as request,
            Checkpointer(workdir, keep=config.train.keep, select=config.eval.select, log_digest=digest) as checkpointer,
        ):
            state, start = resume(experiment, checkpointer)
            with MetricsWriter(workdir, resume_step=start if start else -1) as writer:
                _run(experiment, checkpointer, writer, request, state, start)


def resume(experiment: Experiment, checkpointer: Checkpointer) -> tuple[TrainState, int]:
    """The latest checkpoint's state and step, or the initial state and 0."""
    step = checkpointer.latest_step()
    if step is None:
        return experiment.initial_state(), 0
    say(f"resuming from step {step}")
    return checkpointer.restore(step, experiment.abstract_state), step


def _run(
    experiment: Experiment,
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    request: StopRequest,
    state: TrainState,
    start: int,
) -> None:
    config = experiment.config.train
    step_fn, validate = experiment.compile_step(), _Validation(experiment)
    batches = prefetch(experiment.batch_at, range(start, config.steps), experiment.config.data.prefetch)
    pending, meter = None, _Meter(config.batch_size, start, config.steps)
    saved = checkpointer.latest_step()
    if start < config.steps:
        say(f"compiling, then steps {start + 1:,} to {config.steps:,}")
    for step in range(start, config.steps + 1):
        request.check()
        last = step == config.steps
        evaluates = last or (step > 0 and step % config.eval_every == 0)
        if (evaluates or (step > 0 and step % config.checkpoint_every == 0)) and step != saved:
            pending = _log(pending, experiment, checkpointer, writer, meter)
            with meter.paused():
                metrics = _examine(step, state, validate if evaluates else None, checkpointer)
                if metrics:
                    writer.write(step, "validation", metrics)
                    select = experiment.config.eval.select
                    say(f"step {step}: validation {select} {metrics[select]:.4f}")
                checkpointer.save(step, state, metrics)
            meter.restart()
        if last:
            checkpointer.wait()
            request.check()  # what was asked during the last validation or save
        if request.asked():
            _log(pending, experiment, checkpointer, writer, meter)
            by, end = ("Ctrl-C", KeyboardInterrupt) if request.interrupted else ("SIGTERM", Preempted)
            raise end(f"stopped by {by}{_saved(step, state, checkpointer)}")
        if last:
            return
        batch = next(batches)
        state, metrics = step_fn(state, experiment.catalogue, batch)
        # The previous step's metrics: fetching those of the step just issued would stall the device.
        _log(pending, experiment, checkpointer, writer, meter)
        pending = (step + 1, metrics)


def _examine(
    step: int, state: TrainState, validate: "_Validation | None", checkpointer: Checkpointer
) -> dict[str, float]:
    """Validation metrics of a state that may become a checkpoint, {} if none are wanted.

    A finite loss and gradient can still make an infinite update, and finite parameters infinite scores.
    """
    if not _all_finite(state):
        raise _diverged(f"step {step}: a parameter is not finite after its update", checkpointer)
    try:
        return {} if validate is None else validate(state)
    except FloatingPointError as error:
        raise _diverged(f"step {step}: a score of the validation is not finite", checkpointer) from error


def _saved(step: int, state: TrainState, checkpointer: Checkpointer) -> str:
    """Saves this step, unless that was done or nothing to do yet; how the run goes on."""
    if not step:
        return " before the first step; the same command starts the run"
    if step != checkpointer.latest_step():
        _examine(step, state, None, checkpointer)
        checkpointer.save(step, state, {})
    checkpointer.wait()
    return f"; step {step} is saved, the same command goes on from there"


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _diverged(what: str, checkpointer: Checkpointer) -> DivergenceError:
    good = checkpointer.latest_step()
    kept = "No checkpoint was saved yet" if good is None else f"The checkpoint of step {good} is good"
    remedy = "lower optim.learning_rate or set optim.clip_norm, and look for extreme values in content vectors"
    return DivergenceError(f"{what}. {kept}; {remedy}")


def _log(
    pending: tuple[int, dict[str, jax.Array]] | None,
    experiment: Experiment,
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    meter: "_Meter",
) -> None:
    if pending is None:
        return
    step, metrics = pending[0], {name: float(value) for name, value in jax.device_get(pending[1]).items()}
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
        what = f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"
        raise _diverged(what, checkpointer)
    meter.add(step, metrics)
    if step % experiment.config.train.log_every == 0 or step == meter.steps:
        means, (speed, eta) = meter.means(), meter.speed(step)
        writer.write(step, "train", means | {"examples_per_s": speed})
        shown = {name: means[name] for name in ("loss", "grad_norm")}
        say(progress_line(step, meter.steps, shown, speed, eta))


class _Meter:
    """Means of the metrics since the last line or checkpoint, and the speed without evaluation and compilation.

    A checkpoint ends the means: a run that resumes from it knows nothing of the steps before.
    """

    def __init__(self, batch_size: int, start: int, steps: int):
        self.steps, self._batch_size = steps, batch_size
        self._rows: list[dict[str, float]] = []
        self._since, self._at, self._first = time.perf_counter(), start, start + 1

    def add(self, step: int, metrics: dict[str, float]) -> None:
        if step == self._first:  # which was compiled
            self._since, self._at = time.perf_counter(), step
        self._rows.append(metrics)

    def restart(self) -> None:
        self._rows = []

    def means(self) -> dict[str, float]:
        rows, self._rows = self._rows, []
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def speed(self, step: int) -> tuple[float, float]:
        now = time.perf_counter()
        per_step = (now - self._since) / (step - self._at) if step > self._at else math.nan
        self._since, self._at = now, step
        return self._batch_size / per_step, (self.steps - step) * per_step

    def paused(self) -> "_Pause":
        return _Pause(self)

    def skip(self, seconds: float) -> None:
        self._since += seconds


@dataclasses.dataclass
class _Pause:
    meter: _Meter

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.skip(time.perf_counter() - self._start)


class _Validation:
    """Validation metrics of a state under one noise key."""

    def __init__(self, experiment: Experiment):
        self._evaluator, self._targets = experiment.evaluator(), experiment.split.validation

    def __call__(self, state: TrainState) -> dict[str, float]:
        scores = self._evaluator.score_targets(state.evaluation_variables(), self._targets, 1)
        return {name: mean for name, (mean, _) in summarise(scores, self._targets, self._evaluator.config.ks).items()}
