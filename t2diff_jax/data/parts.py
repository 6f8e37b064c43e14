"""A raw log as files that are read block by block, whichever source they are of."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import DataError, InteractionLog, ItemTable, UserTable, build_log


@dataclasses.dataclass(frozen=True)
class Behaviours:
    """A block of raw rows: users and items [rows], integers or strings; times int64 [rows]."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the rows of a raw log are. It can be pickled, so that other machines can read files of it.

    Attributes:
      name: what the log is called in reports.
      files: in the order of the log; the order of the rows within one is that of the log.
      read: (file, rows of a block or None for one block) -> its blocks, in order. Raises `DataError`.
      item_features, user_features: (ids of the log, in any order and with repeats) -> their features, or None.
      if_empty: what is wrong if there is no row.
    """

    name: str
    files: tuple[epath.Path, ...]
    read: Callable[[epath.Path, int | None], Iterator[Behaviours]]
    item_features: Callable[[np.ndarray], ItemTable | None]
    user_features: Callable[[np.ndarray], UserTable | None]
    if_empty: str


def load_parts(parts: Parts, config: DataConfig) -> InteractionLog:
    """The log of all rows, built in memory. Raises `DataError` as `build_log` and the source do."""
    blocks = list(itertools.chain.from_iterable(parts.read(file, None) for file in parts.files))
    if not sum(len(block.times) for block in blocks):
        raise DataError(parts.if_empty)
    users, items = (join_ids([getattr(block, field) for block in blocks]) for field in ("users", "items"))
    return build_log(
        parts.name,
        users,
        items,
        np.concatenate([block.times for block in blocks]),
        min_user_count=config.min_user_count,
        min_item_count=config.min_item_count,
        item_features=parts.item_features(items),
        user_features=parts.user_features(users),
    )


def join_ids(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of ids one after the other: integers if all of them are, else strings, numbers in their decimal form."""
    columns = [column for column in columns if len(column)]
    strings = any(column.dtype.kind == "U" for column in columns)
    return np.concatenate([column.astype(np.str_) if strings else column for column in columns])
