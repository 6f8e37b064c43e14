"""A log in a folder of `.npy` columns that are mapped into memory, and read only where a run looks.

log.json        name, count filters, names of features, digest; written last
items.npy, ...  the arrays of `InteractionLog`, under their names
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import YEAR_10000, DataError, InteractionLog

MANIFEST = "log.json"
FORMAT = 1
_COLUMNS = ("offsets", "items", "times", "user_ids", "item_ids", "titles", "categories", "user_features")
_NAMES = ("category_names", "user_feature_names", "user_feature_sizes")
_PREPARE = "prepare the log again with prepare.py"


def write_log(log: InteractionLog, folder: pathlib.Path, config: DataConfig) -> InteractionLog:
    """Writes a log that is in memory, and was built under the count filters of `config`, to a folder; opens it."""
    for name in _COLUMNS:
        if getattr(log, name) is not None:
            write_column(folder, name, getattr(log, name))
    return write_manifest(folder, {"name": log.name} | {name: getattr(log, name) for name in _NAMES}, config)


def write_column(folder: pathlib.Path, name: str, values: np.ndarray) -> None:
    """Writes one array of a log."""
    np.save(folder / f"{name}.npy", values, allow_pickle=False)


def write_manifest(folder: pathlib.Path, described: Mapping[str, Any], config: DataConfig) -> InteractionLog:
    """Makes the columns in `folder` a prepared log; `described` are its other fields. Opens it."""
    log = _open(folder, described)
    manifest = {"format": FORMAT, **described, "filters": _filters(config), "digest": log.digest()}
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=1))
    part.rename(folder / MANIFEST)
    return log


def load_prepared(config: DataConfig) -> InteractionLog:
    """Opens the folder `config.path`. All of it is read once, block by block, to find out whether it is as written.

    Raises:
      DataError: no prepared log, one of another version, prepared under other count filters, changed since, or with
        real times beyond the year 9999.
    """
    folder = pathlib.Path(config.path)
    if not config.path or not (folder / MANIFEST).is_file():
        raise DataError(f"{folder / MANIFEST}: no such file; set data.path to a folder that prepare.py has written")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, filters, digest = (manifest.pop(key) for key in ("format", "filters", "digest"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST}: not readable ({error}); {_PREPARE}") from error
    if version != FORMAT:
        raise DataError(f"{folder / MANIFEST}: of format {version}, and this version reads {FORMAT}; {_PREPARE}")
    for key, wanted in _filters(config).items():
        if filters.get(key) != wanted:
            raise DataError(
                f"{folder}: prepared with data.{key}={filters.get(key)}, and the configuration says {wanted}; "
                f"set it to the former, or {_PREPARE}"
            )
    log = _open(folder, manifest)
    if log.digest() != digest:
        raise DataError(f"{folder}: its files are not as they were written; copy them again, or {_PREPARE}")
    if config.real_times and log.times.max(initial=0) >= YEAR_10000:
        raise DataError(
            f"{folder}: times beyond the year 9999, as milliseconds are; set data.real_times=False if times only give "
            f"the order, or divide them and {_PREPARE}"
        )
    return log


def _filters(config: DataConfig) -> dict[str, int]:
    return {"min_user_count": config.min_user_count, "min_item_count": config.min_item_count}


def _open(folder: pathlib.Path, described: Mapping[str, Any]) -> InteractionLog:
    columns = {name: _column(folder / f"{name}.npy", name) for name in _COLUMNS}
    try:
        return InteractionLog(**columns, **{k: tuple(v) if k in _NAMES else v for k, v in described.items()})
    except (TypeError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: does not describe a log ({error}); {_PREPARE}") from error


def _column(path: pathlib.Path, name: str) -> np.ndarray | None:
    field = next(f for f in dataclasses.fields(InteractionLog) if f.name == name)
    if field.default is None and not path.exists():
        return None
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable column ({error}); {_PREPARE}") from error
    return np.asarray(column)
