"""What a workdir belongs to: one configuration and one log, written at its first start and checked ever after.

    config.json            the configuration and the digest of the log
    lock                   held while a process trains
    checkpoints/           see `checkpoint.py`

A workdir is a local or mounted folder, shared between processes.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t2diff_jax.checkpoint import FOLDER, CheckpointError, other_log
from t2diff_jax.config import Config
from t2diff_jax.config_rules import WITH_SLOT
from t2diff_jax.config_values import ASIDE, NO_NUMBER, ConfigError, differences, from_mapping, resume_conflicts, to_dict
from t2diff_jax.writer import say, write_json

CONFIG_FILE = "config.json"
_LOCK = "lock"
# Evaluation may change how a model was trained and is measured, not what it is and what it was trained on.
_NOT_MODEL = ("train.", "optim.", "data.path", "diffusion.sampler", *(f"{name}." for name in ASIDE))
# What versions before these keys of `model` did.
_BEFORE_IN_MODEL = {"user_scale": 1.0, "sketch_dropout": 0.0, "behaviour_dropout": 0.0}
_BEFORE = {"mamba": {"chunk": 0}, "interests": {"last": 0}}
# Of the section `data`: what the log holds depends on them, and on the files.
_OF_LOG = ("source", "min_user_count", "min_item_count", "categories", "user_features", "content", "real_times")
_OF_LOG += ("movielens", "kuairand", "table", "tfds", "synthetic")
_OF_MACHINE = ("data.path", "train.compilation_cache")  # may differ between the processes of a run
_DRAWN = ("diffusion.samples",)  # not where intents are learned: then it is their number


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike) -> Iterator[None]:
    """Makes a workdir and keeps other trainings out of it while entered; a process that is killed holds nothing.

    Of several joined processes, all of which must call this, the first claims it. Where the file system has no locks
    nobody is kept out.

    Raises:
      CheckpointError: another process trains there; says which.
    """
    path = pathlib.Path(workdir) / _LOCK
    with contextlib.ExitStack() as held:
        holder = held.enter_context(_lock(path)) if jax.process_index() == 0 else None
        if _any(holder is not None):
            raise CheckpointError(
                f"{path.parent} is in use by another training ({holder or 'process 0 says which'}): stop it or let it "
                f"end, or use another --workdir; if its machine is gone, delete {path}"
            )
        yield


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[str | None]:
    """Holds the lock of a file, with who does in it; gives who else does, None: nobody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read() or "it has just begun"
            return
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield None
        finally:
            file.truncate(0)


def _any(own: bool) -> bool:
    """Whether it is so for any of the joined processes."""
    return own if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(own)).any())


def open_workdir(workdir: str | os.PathLike, config: Config, log_digest: str) -> None:
    """Claims a workdir for a run: writes `config.json` at the first start, later checks that the run may go on in it.

    The sections `config_values.ASIDE` but for what defines the validation metric, `train.steps` (not below what is
    saved), `train.compilation_cache` and `data.path` may change from start to start; the file follows. Of several
    joined processes, all of which must call this, the first does so; then the others compare theirs with the file.

    Raises:
      ConfigError: settings that make another run differ from the stored ones, or a process has others; lists them.
      CheckpointError: another log, an unreadable `config.json`, or checkpoints without one; of several processes: the
        folder is not shared, or another process may not go on. Nothing is overwritten.
    """
    folder, first = pathlib.Path(workdir), jax.process_index() == 0
    refused = None
    for opens, own_turn in ((_open, first), (_check_as_opened, not first)):
        try:
            if own_turn:
                opens(folder, config, log_digest)
        except (ConfigError, CheckpointError, OSError) as error:
            refused = error
        if _any(refused is not None):
            raise refused or CheckpointError(f"another process of this run may not go on in {folder}, and says why")


def _open(folder: pathlib.Path, config: Config, log_digest: str) -> None:
    path = folder / CONFIG_FILE
    trained = _trained(folder)
    if path.exists():
        old, old_digest = read_config(folder, config)
        if conflicts := resume_conflicts(old, config):
            raise ConfigError(
                f"{path} was written by a run with other settings:\n{_listed(conflicts)}\n"
                f"Use another --workdir, or {_remedy(trained)}"
            )
        if old_digest != log_digest:
            raise CheckpointError(f"{path} belongs to {other_log(old_digest, log_digest)}")
        if old == config:
            return
        _check_steps(folder, old, config, trained)
    elif trained:
        raise CheckpointError(f"{folder} holds checkpoints but no {CONFIG_FILE}: put it back or use another --workdir")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"log_digest": log_digest, "config": to_dict(config)})


def _check_as_opened(folder: pathlib.Path, config: Config, log_digest: str) -> None:
    path = folder / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(f"{path}, which process 0 wrote, is not here: --workdir must be one that all can reach")
    opened, digest = read_config(folder, config)
    differing = differences(opened, config)
    if differing := {name: pair for name, pair in differing.items() if name not in _OF_MACHINE}:
        raise ConfigError(f"process 0 has other settings:\n{_listed(differing)}\nStart all processes with the same")
    if digest != log_digest:
        raise CheckpointError(
            f"process 0 read another interaction log (digest {digest}, here {log_digest}): data.path must name the "
            "same files for all processes"
        )


def _trained(folder: pathlib.Path) -> int:
    """The last step of which there is a checkpoint; 0: none."""
    return max((int(child.name) for child in (folder / FOLDER).glob("*") if child.name.isdigit()), default=0)


def _remedy(trained: int) -> str:
    return "set the stored values to go on with that run" if trained else "delete it: it holds no checkpoint"


def _check_steps(folder: pathlib.Path, old: Config, config: Config, trained: int) -> None:
    steps, decays = config.train.steps, config.optim.decay == "cosine" and not config.optim.decay_steps
    if steps < trained:
        raise ConfigError(
            f"config.train.steps: {folder} holds step {trained} already, {steps} are fewer: set at least {trained}, or "
            "use another --workdir"
        )
    if trained and decays and steps != old.train.steps:
        say(
            f"train.steps: {old.train.steps} before, {steps} now, where the learning rate comes to 0 "
            f"(optim.decay_steps=0): not the run that {steps} steps from the start would be"
        )


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
    except ConfigError as error:
        raise CheckpointError(
            f"{path} does not fit this version ({error}): use what wrote it (see run.json), or another --workdir"
        ) from error
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
    model = _BEFORE_IN_MODEL | stored["model"]
    renamed = {"bert4rec": {"masked": model.pop("bert_masked")}} if "bert_masked" in model else {}
    sections = {name: own for name, own in current["model"].items() if isinstance(own, dict)}
    known = {name: _BEFORE.get(name, {}) | own for name, own in (renamed | model).items() if name in sections}
    diffusion = dict(stored["diffusion"])
    if model["name"] not in WITH_SLOT:
        diffusion["samples"] = 1  # older versions let it be set where it means nothing
    return stored | aside | {"model": model | sections | known, "diffusion": diffusion}


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


def check_same_run(workdir: str | os.PathLike, config: Config, *, finished: bool) -> None:
    """Checks that a workdir is of a run of `config`, as a row of a comparison must be.

    finished: whether it is trained and tested: then only how the same numbers are come by may differ (blocks, batches
      of an evaluation, devices, intervals of saving and printing), else what a start may change (`open_workdir`).

    Raises:
      ConfigError: lists what differs. What `loss.negatives=-1` may have come to is no difference.
      CheckpointError: the workdir has no readable `config.json`.
    """
    old, _ = read_config(workdir, config)
    if config.loss.negatives == -1 and old.loss.negatives in (0, config.auto.negatives):
        loss = dataclasses.replace(config.loss, negatives=old.loss.negatives)
        optim = dataclasses.replace(config.optim, lazy_rows=old.loss.negatives > 0)
        config = dataclasses.replace(config, loss=loss, optim=optim)
    differing = differences(old, config) if finished else resume_conflicts(old, config)
    free = NO_NUMBER if finished else ()
    if differing := {name: pair for name, pair in differing.items() if not name.startswith(free)}:
        remedy = "" if finished else f", or {_remedy(_trained(pathlib.Path(workdir)))}"
        raise ConfigError(
            f"{workdir} was made with other settings:\n{_listed(differing)}\nName another --workdir{remedy}"
        )


def tell_other_logs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two stored `config.json` tell of different logs though both read their data in the same way.

    Other settings give another digest also where the behaviours are the same (features that are switched off); and
    copies that older versions kept hold none.
    """
    a, b = ({key: run["config"]["data"].get(key) for key in _OF_LOG} for run in (one, other))
    digests = one.get("log_digest"), other.get("log_digest")
    return a == b and all(digests) and digests[0] != digests[1]


def _listed(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in pairs.items())
