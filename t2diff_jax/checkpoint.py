"""Checkpoints that are checked: Orbax writes and reads them, digests of our own prove that what came back went in.

Layout of a workdir (a local or mounted folder, shared between processes):

    config.json            the configuration and the digest of the log, written at the first start
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
import jax.numpy as jnp
import orbax.checkpoint as ocp

from t2diff_jax.config import Config
from t2diff_jax.config_values import ASIDE, ConfigError, differences, from_mapping, resume_conflicts, to_dict
from t2diff_jax.sharding import fetch_each
from t2diff_jax.writer import write_json

CONFIG_FILE = "config.json"
FOLDER = "checkpoints"
_REMOVED = "removed"  # steps no longer kept are renamed into this folder before their files go: a kill leaves none half
_REMEDY = "delete that folder to go on from an earlier checkpoint, or evaluate another --step"
_SALTS = (0x9E3779B9, 0x6A09E667)  # fractional parts of the golden ratio and of sqrt(2): any two constants would do
# Evaluation may change how a model was trained and is measured, not what it is and what it was trained on.
_NOT_MODEL = ("train.", "optim.", "data.path", "diffusion.sampler", *(f"{name}." for name in ASIDE))
# What versions before these keys of `model` did.
_BEFORE = {"mamba": {"chunk": 0}, "interests": {"last": 0}}
_DRAWN = ("diffusion.samples",)  # not where intents are learned: then it is their number


class CheckpointError(RuntimeError):
    """A checkpoint or workdir that cannot be used; the message names the place and a remedy."""


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
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
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
            raise CheckpointError(f"{self._where(step)} is of {_other_log(manifest['log_digest'], self._log_digest)}")
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
            remedy = f"Restore it with the settings in {self._folder.parent / CONFIG_FILE}"
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


def open_workdir(workdir: str | os.PathLike, config: Config, log_digest: str) -> None:
    """Claims a workdir for a run: writes `config.json` at the first start, later checks that the run may go on in it.

    The sections `config_values.ASIDE`, `train.steps`, `train.compilation_cache` and `data.path` may change from start
    to start; the file follows.

    Raises:
      ConfigError: settings that make another run differ from the stored ones; lists them.
      CheckpointError: another log, an unreadable `config.json`, or checkpoints without one. Nothing is overwritten.
    """
    folder = pathlib.Path(workdir)
    path = folder / CONFIG_FILE
    trained = any(child.name.isdigit() for child in (folder / FOLDER).glob("*"))
    if path.exists():
        old, old_digest = read_config(folder, config)
        if conflicts := resume_conflicts(old, config):
            remedy = "set the stored values to go on with that run" if trained else "delete it: it holds no checkpoint"
            raise ConfigError(
                f"{path} was written by a run with other settings:\n{_listed(conflicts)}\n"
                f"Use another --workdir, or {remedy}"
            )
        if old_digest != log_digest:
            raise CheckpointError(f"{path} belongs to {_other_log(old_digest, log_digest)}")
        if old == config:
            return
    elif trained:
        raise CheckpointError(f"{folder} holds checkpoints but no {CONFIG_FILE}: put it back or use another --workdir")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"log_digest": log_digest, "config": to_dict(config)})


def read_config(workdir: str | os.PathLike, config: Config) -> tuple[Config, str]:
    """The configuration and the log digest that a workdir was started with.

    Keys of sections that may change from start to start, where an older version did not write them, are those of
    `config`.

    Raises:
      CheckpointError: there is no `config.json`, or it is not what this version writes.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        values, log_digest = stored["config"], stored["log_digest"]
        if not (isinstance(values, dict) and isinstance(log_digest, str)):
            raise TypeError("config must be an object and log_digest a string")
        return from_mapping(_with_newer_sections(values, to_dict(config))), log_digest
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: no run was started in this workdir") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}): put a copy back, or use another --workdir"
        ) from error


def _with_newer_sections(stored: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """What an older version stored, as one of today would have: under today's names, with the sections that it did not
    know, which are for evaluation or for other models, and with what it did where there is a key now."""
    counts = {"items": "n_items", "users": "n_users"}
    stored = stored | {"dry_run": {counts.get(key, key): value for key, value in stored.get("dry_run", {}).items()}}
    aside = {name: current[name] | stored.get(name, {}) for name in ASIDE}
    model = dict(stored["model"])
    renamed = {"bert4rec": {"masked": model.pop("bert_masked")}} if "bert_masked" in model else {}
    sections = {name: own for name, own in current["model"].items() if isinstance(own, dict)}
    known = {name: _BEFORE.get(name, {}) | own for name, own in (renamed | model).items() if name in sections}
    return stored | aside | {"model": model | sections | known}


def check_same_model(workdir: str | os.PathLike, config: Config) -> None:
    """Checks that `config` describes the model and the data of a workdir; how it is trained and measured may differ.

    Raises:
      ConfigError: lists the fields that differ apart from the sections `config_values.ASIDE`, train.*, optim.*,
        data.path, the sampler, the number of drawn intents, and a `loss.negatives` that is not settled.
      CheckpointError: the workdir has no readable `config.json`.
    """
    old, _ = read_config(workdir, config)
    learned = config.model.slot == "learned" or config.diffusion.noise == "intent"
    free = _NOT_MODEL if learned else _NOT_MODEL + _DRAWN
    free += ("loss.negatives",) if config.loss.negatives == -1 else ()  # settled when the run was started
    differing = {name: pair for name, pair in differences(old, config).items() if not name.startswith(free)}
    if differing:
        raise ConfigError(
            f"the checkpoints in {workdir} are of another model or other data:\n{_listed(differing)}\n"
            "Set the stored values, or name another --workdir"
        )


@jax.jit  # called per array: a state has many arrays and few shapes
def array_digest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two uint32 scalars over the bits and the places of all elements; the same for every sharding and device count.

    With w_i the 32-bit words of `x` and h a bijection of uint32: sum_i h(w_i xor h(i + salt)) mod 2^32, for two salts.
    A term is a bijection of its word, so a change within one word always shows; any other (swapped elements, zeroed
    blocks) escapes with probability 2^-64. A plain weighted sum would miss the swap of a value with its negative.
    """
    words = _words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # no reshape: that would gather a sharded array
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    a, b = (jnp.sum(_mix(words ^ _mix(index + jnp.uint32(salt))), dtype=jnp.uint32) for salt in _SALTS)
    return a, b


def _words(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    """Bijection of uint32 that spreads every bit: xor-shifts and odd multiplications, MurmurHash3's constants."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


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


def _listed(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in pairs.items())


def _other_log(old: str, new: str) -> str:
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
