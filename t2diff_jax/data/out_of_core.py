"""A log that does not fit in memory, built in passes over its files: ids counted, rows sorted in buckets of users.

Memory is of the order of the ids (users and items), a block and a bucket. What the passes do is in functions of their
own: `beam_pipeline.py` runs the same ones on other machines.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from t2diff_jax.config import DataConfig, PrepareConfig
from t2diff_jax.data.log import (
    DataError,
    InteractionLog,
    item_fields,
    no_user_left,
    time_order,
    user_fields,
    with_padding_row,
)
from t2diff_jax.data.parts import Behaviours, Parts, join_ids
from t2diff_jax.data.prepared import write_column, write_manifest

ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("time", "<i8")])  # codes: places among the ascending ids


@dataclasses.dataclass(frozen=True)
class Counted:
    """Ids, ascending and each once, [n] integers or strings, and how often each occurs, int64 [n]."""

    ids: np.ndarray
    counts: np.ndarray


def count_ids(ids: np.ndarray) -> Counted:
    """The ids of a column [rows]."""
    return Counted(*np.unique(ids, return_counts=True))


def merge(parts: Sequence[Counted]) -> Counted:
    """The union of what was counted. Associative, so that it may be done in any grouping."""
    if len(parts) == 1:
        return parts[0]
    ids, where = np.unique(join_ids([part.ids for part in parts]), return_inverse=True)
    counts = np.zeros(len(ids), np.int64)
    np.add.at(counts, where, np.concatenate([part.counts for part in parts if len(part.ids)]))
    return Counted(ids, counts)


class Counter:
    """Counts columns as they come; the many small counts are merged when they are as long as what is there."""

    def __init__(self):
        self._parts: list[Counted] = []

    def add(self, part: Counted) -> None:
        """Counts some more."""
        self._parts.append(part)
        if len(self._parts) > 1 and sum(len(p.ids) for p in self._parts[1:]) >= len(self._parts[0].ids):
            self._parts = [merge(self._parts)]

    def total(self) -> Counted:
        """All that was added; there must have been something."""
        return merge(self._parts)


def count_files(parts: Parts, files: Iterable[epath.Path], rows: int) -> tuple[Counted, Counted] | None:
    """Users and items of some of a log's files, read in blocks of so many rows; None where no row is left."""
    users, items, empty = Counter(), Counter(), True
    for block in (block for file in files for block in parts.read(file, rows) if len(block.times)):
        users.add(count_ids(block.users))
        items.add(count_ids(block.items))
        empty = False
    return None if empty else (users.total(), items.total())


def bucket_starts(user_counts: np.ndarray, bucket_rows: int) -> np.ndarray:
    """First user code of each bucket, int64: consecutive users of at most so many rows together, or a single one."""
    ends, starts = np.cumsum(user_counts), [0]
    while (first := starts[-1]) < len(ends):
        before = ends[first - 1] if first else 0
        starts.append(max(first + 1, int(np.searchsorted(ends, before + bucket_rows, side="right"))))
    return np.array(starts[:-1], np.int64)


def codes(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Places int32 [rows] of the ids `values` [rows] among the ascending `ids`, which hold all of them."""
    unique, where = np.unique(
        values if values.dtype.kind == ids.dtype.kind else values.astype(ids.dtype), return_inverse=True
    )
    return np.searchsorted(ids, unique).astype(np.int32)[where]


def bucketed(
    block: Behaviours, user_ids: np.ndarray, item_ids: np.ndarray, starts: np.ndarray
) -> dict[int, np.ndarray]:
    """The rows of a block by the number of their bucket, `ROW` [rows of it] each, in the order of the block."""
    if not len(block.times):
        return {}
    rows = np.empty(len(block.times), ROW)
    rows["user"], rows["item"], rows["time"] = codes(block.users, user_ids), codes(block.items, item_ids), block.times
    bucket = np.searchsorted(starts, rows["user"], side="right") - 1
    order = np.argsort(bucket, kind="stable")
    numbers, first = np.unique(bucket[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows[order], first[1:]), strict=True))


def sort_rows(rows: np.ndarray) -> np.ndarray:
    """Rows `ROW` in the order of a log: by user, then time; ties as they came."""
    return rows[time_order(rows["user"], rows["time"])]


Bucket = Callable[[], np.ndarray]  # reads the rows of one bucket, `ROW`, sorted


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the count filters leave: users bool [U] and items bool [N], and the rows of each user, int64 [U]."""

    users: np.ndarray
    items: np.ndarray
    user_counts: np.ndarray

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The rows `ROW` of users and items that are kept."""
        return rows[self.users[rows["user"]] & self.items[rows["item"]]]


def keep(buckets: Sequence[Bucket], users: Counted, items: Counted, config: DataConfig) -> Kept:
    """The largest log in which all users and items have their minimum count.

    Reads every bucket again until nobody is left to drop, and not at all where everyone has the minimum.
    """
    kept, item_counts = Kept(np.ones(len(users.ids), bool), np.ones(len(items.ids), bool), users.counts), items.counts
    while True:
        left_users = kept.users & (kept.user_counts >= max(1, config.min_user_count))
        left_items = kept.items & (item_counts >= max(1, config.min_item_count))
        if (left_users == kept.users).all() and (left_items == kept.items).all():
            return kept
        kept, item_counts = Kept(left_users, left_items, np.zeros_like(users.counts)), np.zeros_like(items.counts)
        for rows in (kept.of(bucket()) for bucket in buckets):
            np.add.at(kept.user_counts, rows["user"], 1)
            np.add.at(item_counts, rows["item"], 1)


def write_sorted(
    folder: pathlib.Path, buckets: Sequence[Bucket], users: Counted, items: Counted, parts: Parts, config: DataConfig
) -> InteractionLog:
    """Writes the log whose rows are in the sorted buckets to `folder`, an empty one, and opens it.

    Raises:
      DataError: no user is left after the count filters, or feature tables do not fit.
    """
    kept = keep(buckets, users, items, config)
    if not kept.users.any():
        raise no_user_left(parts.name, config.min_user_count, config.min_item_count)
    _write_rows(folder, buckets, kept)
    user_ids, item_ids = users.ids[kept.users], items.ids[kept.items]
    fields = {
        "offsets": np.concatenate([[0], np.cumsum(kept.user_counts[kept.users])]),
        "user_ids": user_ids,
        "item_ids": with_padding_row(item_ids),
        **item_fields(parts.name, item_ids, parts.item_features(items.ids)),
        **user_fields(parts.name, user_ids, parts.user_features(users.ids)),
    }
    described = {"name": parts.name, "category_names": (), "user_feature_names": (), "user_feature_sizes": ()}
    for name, value in fields.items():
        if name in described:
            described[name] = value
        else:
            write_column(folder, name, value)
    return write_manifest(folder, described, config)


def _write_rows(folder: pathlib.Path, buckets: Sequence[Bucket], kept: Kept) -> None:
    form = {"fortran_order": False, "shape": (int(kept.user_counts[kept.users].sum()),)}
    number = np.cumsum(kept.items).astype(np.int32)  # 1..N
    with open(folder / "items.npy", "wb") as items, open(folder / "times.npy", "wb") as times:
        np.lib.format.write_array_header_1_0(items, {"descr": "<i4", **form})
        np.lib.format.write_array_header_1_0(times, {"descr": "<i8", **form})
        for rows in (kept.of(bucket()) for bucket in buckets):
            items.write(number[rows["item"]].astype("<i4").data)
            times.write(np.ascontiguousarray(rows["time"], "<i8").data)


def build_out_of_core(
    parts: Parts, folder: pathlib.Path, data: DataConfig, sizes: PrepareConfig, say: Callable[[str], None]
) -> InteractionLog:
    """Writes the log of `parts` to `folder`, an empty one, on this machine; opens it. Says what it does.

    Raises:
      DataError: a file cannot be read, or nothing is left of the log.
    """
    say(f"{parts.name}: counting the ids of {len(parts.files)} file(s)")
    counted = count_files(parts, parts.files, sizes.block_rows)
    if counted is None:
        raise DataError(parts.if_empty)
    users, items = counted
    starts = bucket_starts(users.counts, sizes.bucket_rows)
    say(
        f"{len(users.ids):,} users, {len(items.ids):,} items, {users.counts.sum():,} behaviours; "
        f"sorting them in {len(starts)} bucket(s)"
    )
    with tempfile.TemporaryDirectory(prefix="rows_", dir=folder) as scratch:
        paths = [pathlib.Path(scratch) / f"{number}.rows" for number in range(len(starts))]
        for block in (block for file in parts.files for block in parts.read(file, sizes.block_rows)):
            for number, rows in bucketed(block, users.ids, items.ids, starts).items():
                with open(paths[number], "ab") as file:
                    file.write(rows.data)
        for path in paths:
            sort_rows(np.fromfile(path, ROW)).tofile(path)
        say("writing the columns")
        buckets = [functools.partial(np.fromfile, path, ROW) for path in paths]
        return write_sorted(folder, buckets, users, items, parts, data)
