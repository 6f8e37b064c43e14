"""From a `ConfigDict` to a validated `Config` and back; what differs between two, and what of it a run may change."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from t2diff_jax.config import Config
from t2diff_jax.config_rules import rules

ASIDE = ("prepare", "auto", "dry_run", "mesh", "eval", "cold")  # sections that may change from start to start
# Keys, or beginnings of keys, that say how the same numbers are come by.
NO_NUMBER = ("prepare.", "auto.", "dry_run.", "mesh.", "cold.", "data.prefetch", "eval.batch_size", "eval.block")
NO_NUMBER += ("eval.search", "train.log_every", "train.checkpoint_every", "train.keep")
NO_NUMBER += ("train.compilation_cache",)
_MEASURE = ("eval.exclude_seen", "eval.merge")  # but for these: checkpoints measured otherwise cannot be compared


class ConfigError(ValueError):
    """A key that does not exist, is missing, or holds a value that cannot be used."""


def from_mapping(values: Mapping[str, Any] | ConfigDict) -> Config:
    """The conversion from a `ConfigDict` (or a dict read back from JSON) to a validated `Config`.

    Raises:
      ConfigError: names the key, what is wrong, and the closest existing key.
    """
    config = _convert(Config, dict(values.items()), "config")
    for ok, key, message in rules(config):
        if not ok:
            raise ConfigError(f"config.{key}: {message}")
    return config


def settled(config: Config, n_items: int, device: str) -> Config:
    """The configuration with `loss.negatives=-1` replaced by what it comes to; others as they are.

    device: "cpu", "gpu" or "tpu".

    Raises:
      ConfigError: what it comes to does not go with another setting.
    """
    if config.loss.negatives != -1:
        return config
    loss = config.loss
    bound = {"cpu": config.auto.full_cpu, "gpu": config.auto.full_gpu, "tpu": config.auto.full_tpu}[device]
    names_items = config.diffusion.estimate == "catalogue" and not config.model.sequential
    needs_all = loss.block > 0 or loss.label_smoothing > 0 or names_items
    drawn = loss.batch_negatives > 0 or (n_items > bound and not needs_all)
    loss = dataclasses.replace(loss, negatives=config.auto.negatives if drawn else 0)
    optim = dataclasses.replace(config.optim, lazy_rows=drawn)
    return from_mapping(to_dict(dataclasses.replace(config, loss=loss, optim=optim)))


def as_computed(config: Config, device: str, count: int) -> Config:
    """What the programs for so many devices are made of: `loss.chunk` is for the caches of a single CPU.

    Elsewhere chunks would make every device score all targets. The loss is the same, so that what is stored with the
    run stays as it is, and the run goes on anywhere.
    """
    if device == "cpu" and count == 1:
        return config
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, chunk=0))


def to_dict(config: Config) -> dict[str, Any]:
    """A plain dict that `from_mapping` reads back to an equal `Config`, also after JSON."""
    return dataclasses.asdict(config)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the keys in which two configurations differ, with (old, new) values."""
    a, b = _flatten(to_dict(old)), _flatten(to_dict(new))
    return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def resume_conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The differences that forbid going on in an old run: all but `train.steps`, evaluation, devices, file places.

    Of evaluation what says which checkpoint is the best may not change either.
    """
    free = ("train.steps", "train.compilation_cache", "data.path", *(f"{name}." for name in ASIDE))
    return {k: v for k, v in differences(old, new).items() if k in _MEASURE or not k.startswith(free)}


def check_overrides(arguments: Sequence[str]) -> None:
    """Checks the names in `--config.a.b=value` arguments, before a flag parser meets them.

    Raises:
      ConfigError: names the first that is no key, and the closest one.
    """
    for argument in arguments:
        if not (match := re.match(r"--?config\.([\w.]+)", argument)):
            continue
        section, path = Config, "config"
        for name in match[1].split("."):
            names = list(typing.get_type_hints(section)) if dataclasses.is_dataclass(section) else []
            if name not in names:
                raise ConfigError(_no_such_key(path, name, names))
            section, path = typing.get_type_hints(section)[name], f"{path}.{name}"


def keys_named(name: str) -> list[str]:
    """The dotted keys that are called so, or end in it: ["train.steps", ...] of "steps"."""

    def keys(section: type, prefix: str) -> Iterator[str]:
        for key, hint in typing.get_type_hints(section).items():
            yield from keys(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint) else [prefix + key]

    return [key for key in keys(Config, "") if f".{key}".endswith(f".{name}")]


def _no_such_key(path: str, key: str, known: list[str]) -> str:
    if not known:
        return f"{path}.{key}: {path} is a value and has no keys"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {path}.{close[0]}?" if close else f"; known keys: {', '.join(known)}"
    return f"{path}.{key}: no such key{hint}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _convert(cls: type, values: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = list(hints)
    for key in values:
        if key not in hints:
            raise ConfigError(_no_such_key(path, key, names))
    missing = [n for n in names if n not in values]
    if missing:
        raise ConfigError(f"{path}.{missing[0]}: missing; start from configs/base.py, which names every key")
    return cls(**{name: _value(hints[name], values[name], f"{path}.{name}") for name in names})


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise ConfigError(f"{path}: expected a section, got {value!r}")
        return _convert(hint, dict(value.items()), path)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path}: {value!r} is none of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a sequence, got {value!r}")
        return tuple(_value(typing.get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: expected a finite number, got {value!r}")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        name = hint.__name__ if not isinstance(hint, types.UnionType) else str(hint)
        raise ConfigError(f"{path}: expected {name}, got {value!r}")
    return value
