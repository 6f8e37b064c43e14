"""Checkpoints that are checked: Orbax writes and reads them, digests of our own prove that what came back went in.

Layout, in a workdir (`workdir.py`):

    checkpoints/<step>/    one Orbax checkpoint: item `state` (the arrays) and item `manifest` (JSON)

Orbax restores silently wrong values from a file with a flipped bit, casts to the requested dtype, and may ignore the
requested shape. The manifest therefore holds shape, dtype and digest of every array, and a digest of itself.
"""

import contextlib
import hashlib
import inspect
import json
import logging
import math
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from t2diff_jax.array_digest import array_digest
from t2diff_jax.sharding import fetch_each

FOLDER = "checkpoints"
_REMOVED = "removed"  # steps no longer kept are renamed into this folder before their files go: a kill leaves none half
_REMEDY = "delete that folder to go on from an earlier checkpoint, or evaluate another --step"


class CheckpointError(RuntimeError):
    """A checkpoint or workdir that cannot be used; the message names the place and a remedy."""


class _Manager(ocp.CheckpointManager):
    """One that never asks JAX's runtime whether the processes are to stop: the loop does, at every step.

    A second question, from the thread that ends a save, would be about an earlier step, and processes would stop apart.
    """

    def reached_preemption(self, step: int) -> bool:
        """False: what is saved, the loop says."""
        return False


class Checkpointer:
    """Saves states in the background and restores them checked. Every process of a run makes the same calls.

    Kept are the latest `keep` checkpoints and the best: the highest validation metric `select` among those saved with a
    finite one (of equals the latest). A checkpoint whose manifest cannot be read is never deleted.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int, select: str, log_digest: str, read_only: bool = False):
        """Opens `workdir/checkpoints` and removes what a killed save left there.

        `log_digest` names the interaction log: stored at save, compared at restore. `read_only` is for evaluation
        beside a run that still trains: nothing is made, saved or removed. Raises `CheckpointError` if that fails, or if
        the saved steps were validated but not by `select`.
        """
        self._folder = pathlib.Path(workdir).resolve() / FOLDER
        self._keep, self._select, self._log_digest, self._read_only = keep, select, log_digest, read_only
        self._scores: dict[int, float | None] = {}
        self._unreadable: dict[int, CheckpointError] = {}
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else _REMOVED,
            preservation_policy=_KeepSteps(self._steps_to_keep),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "manifest": ocp.JsonCheckpointHandler()}
        with _explained(f"{self._folder} cannot be opened"):
            self._manager = _Manager(self._folder, options=options, item_handlers=handlers)
        self._sweep()
        measured: set[str] = set()
        for step in self.steps():
            try:
                metrics = self._read_manifest(step)["metrics"]
            except CheckpointError as error:
                self._unreadable[step] = error
                continue
            self._scores[step] = _score(metrics, select)
            measured |= metrics.keys()
        self._unmeasured = None
        if measured and select not in measured:
            names = ", ".join(sorted(measured))
            self._unmeasured = CheckpointError(
                f"the best checkpoint in {self._folder} is not known by {select}: set eval.select to one of {names}"
            )
            if not read_only:  # the best by another metric would lose its protection
                self._manager.close()
                raise self._unmeasured

    def save(self, step: int, state: Any, metrics: Mapping[str, float]) -> None:
        """Starts to save `state` and returns once its arrays are copied; they may be donated afterwards.

        Args:
          step: must exceed every saved step.
          state: a tree of jax arrays, sharded in any way; None and empty nodes are fine, typed PRNG keys are not.
          metrics: validation metrics of this state; empty if it was not evaluated.

        Raises:
          CheckpointError: the step is not new, or this save or the one before it failed (disk full).
          ValueError: a leaf is not a jax array, or the folder is open for reading only.
        """
        if self._read_only:
            raise ValueError("this Checkpointer was opened with read_only=True")
        self.wait()
        if self.steps() and step <= self.steps()[-1]:
            raise CheckpointError(f"step {step} cannot be saved: {self._folder} holds step {self.steps()[-1]} already")
        manifest = {
            "step": int(step),
            "log_digest": self._log_digest,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "forms": _forms(state),
            "digests": _digests(state),
        }
        sealed = {"manifest": manifest, "sha256": _seal(manifest)}
        self._scores[step] = _score(manifest["metrics"], self._select)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), manifest=ocp.args.JsonSave(sealed))
        with _explained(f"saving under {self._folder} failed"):
            self._manager.save(step, args=items, force=True)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved at `step`, with the structure and the shardings of `abstract_state`.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings, or of arrays; any mesh will do.

        Raises:
          CheckpointError: no such step; arrays, shapes or dtypes other than the requested ones; another log; damaged
            or missing files. Names the step, its folder and the array.
          ValueError: a leaf of `abstract_state` has no sharding.
        """
        self.wait()
        if step not in self.steps():
            present = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self._folder} has no checkpoint of step {step}; present: {present}")
        manifest = self._read_manifest(step)
        if manifest["log_digest"] != self._log_digest:
            raise CheckpointError(f"{self._where(step)} is of {other_log(manifest['log_digest'], self._log_digest)}")
        self._check_forms(step, manifest["forms"], _forms(abstract_state))
        unreadable = _explained(f"{self._where(step)} cannot be read", f"If its files are damaged, {_REMEDY}")
        with unreadable, _only_the_first_failure_is_told():
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            state = self._manager.restore(step, args=items)["state"]
            forms, digests = _forms(state), _digests(state)
        for name, digest in manifest["digests"].items():
            if forms[name] != manifest["forms"][name] or digests[name] != digest:
                raise CheckpointError(
                    f"{self._where(step)} is damaged: {name} is not what was saved (digest mismatch); {_REMEDY}"
                )
        return state

    def steps(self) -> list[int]:
        """The saved steps, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The highest saved step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the highest `select` metric, or None if no checkpoint has that metric.

        Raises `CheckpointError` if it is not known: a manifest cannot be read, or they have other metrics only.
        """
        if self._unmeasured:
            raise self._unmeasured
        for step in self.steps():
            if step in self._unreadable:
                raise self._unreadable[step]
        return self._best_of(self.steps())

    def wait(self) -> None:
        """Blocks until the save in progress is on disk. Raises `CheckpointError` if it failed."""
        with _explained(f"saving under {self._folder} failed"):
            self._manager.wait_until_finished()
        self._sweep()

    def close(self) -> None:
        """Finishes the save in progress and releases the threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sweep(self) -> None:
        """Frees the disk of steps that are no longer kept; no save may be in progress."""
        if not self._read_only and jax.process_index() == 0:
            shutil.rmtree(self._folder / _REMOVED, ignore_errors=True)

    def _where(self, step: int) -> str:
        return f"checkpoint of step {step} in {self._folder / str(step)}"

    def _best_of(self, steps: Sequence[int]) -> int | None:
        scored = [(self._scores[step], step) for step in steps if self._scores.get(step) is not None]
        return max(scored)[1] if scored else None

    def _steps_to_keep(self, steps: Sequence[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep :], self._best_of(steps), *self._unreadable}

    def _read_manifest(self, step: int) -> dict[str, Any]:
        with _explained(f"the manifest of the {self._where(step)} cannot be read", f"If it is damaged, {_REMEDY}"):
            items = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            sealed = self._manager.restore(step, args=items)["manifest"]
            manifest = sealed["manifest"]
            if sealed["sha256"] != _seal(manifest) or manifest["step"] != step:
                raise ValueError("it is not what was saved")
        return manifest

    def _check_forms(self, step: int, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        """Raises unless the stored arrays have the names, shapes and dtypes of the wanted ones."""
        forms = {name: (stored.get(name, "absent"), wanted.get(name, "absent")) for name in {**stored, **wanted}}
        lines = [f"  {name}: {a} in the checkpoint, {b} wanted" for name, (a, b) in forms.items() if a != b]
        if lines:
            more = [f"  and {len(lines) - 8} more"] if len(lines) > 8 else []
            remedy = f"Restore it with the settings in {self._folder.parent / 'config.json'}"
            raise CheckpointError("\n".join([f"{self._where(step)} does not fit:", *lines[:8], *more, remedy]))


class _KeepSteps:
    """Orbax's protocol for what to preserve, answered by a function from the present steps to those to keep.

    Orbax's own BestN ranks by a metrics file that nothing protects; a damaged one keeps the manager from opening.
    """

    def __init__(self, steps_to_keep: Callable[[Sequence[int]], set[int | None]]):
        self._steps_to_keep = steps_to_keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self._steps_to_keep([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]


def _leaves(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _forms(tree: Any) -> dict[str, str]:
    """{leaf name: "dtype[shape]"} of a tree of arrays or of their abstract values."""
    for name, leaf in _leaves(tree).items():
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(
                f"{name}: expected a jax array or a jax.ShapeDtypeStruct with a sharding, got {type(leaf).__name__}"
            )
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _leaves(tree).items()}


def _digests(tree: Any) -> dict[str, str]:
    leaves = _leaves(tree)
    sums = fetch_each(map(array_digest, leaves.values()))
    return {name: f"{int(a):08x}{int(b):08x}" for name, (a, b) in zip(leaves, sums, strict=True)}


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _score(metrics: Mapping[str, float], select: str) -> float | None:
    value = metrics.get(select)
    return value if value is not None and math.isfinite(value) else None


def other_log(old: str, new: str) -> str:
    """What to say where the digests of two logs differ, and what to do."""
    return f"another interaction log (digest {old} there, {new} now): use the data of that run, or another --workdir"


@contextlib.contextmanager
def _only_the_first_failure_is_told() -> Iterator[None]:
    """Keeps quiet, if what it encloses fails, what Python prints of the reads that were under way beside it.

    A restore reads all arrays at once and raises for the first that it cannot read. The others end at any later time,
    with tracebacks of their own: tasks that nobody awaits, callbacks into an event loop that is closed. So the silence
    lasts after a failure; after a success everything is as before.
    """
    log, hook, filters = logging.getLogger("asyncio"), sys.unraisablehook, warnings.filters[:]

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed" and not inspect.iscoroutine(unraisable.object):
            hook(unraisable)

    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    log.addFilter(_is_awaited)
    sys.unraisablehook = report
    yield
    warnings.filters[:] = filters
    log.removeFilter(_is_awaited)
    sys.unraisablehook = hook


def _is_awaited(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


@contextlib.contextmanager
def _explained(what: str, remedy: str = "") -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise, pages long at times, into a `CheckpointError` of one line."""
    try:
        yield
    except Exception as error:
        root = error
        while root.__cause__ is not None:
            root = root.__cause__
        first = next(iter(str(root).splitlines()), "")[:240]
        raise CheckpointError(f"{what} ({type(root).__name__}: {first}). {remedy}".rstrip()) from error
