"""The interaction log: one columnar, validated structure that every source produces."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import numpy as np

YEAR_10000 = 253_402_300_800  # in unix seconds; in milliseconds it is 1978
BLOCK = 1 << 22  # rows of a pass over all behaviours: the columns may lie in files larger than memory
_STRINGS = 1 << 20  # of a column that are Python objects at a time


class DataError(ValueError):
    """Input that cannot be used. The message names the file, the line where there is one, the field and what to do."""


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Raw item features, keyed by original item id; M rows in any order, each id once.

    Attributes:
      ids: [M] original ids, integers or strings.
      titles: [M] strings, or None.
      categories: int32 [M, C] category ids 1..G, 0 where an item has fewer than C, or None.
      category_names: name g - 1 belongs to category g.
    """

    ids: np.ndarray
    titles: np.ndarray | None
    categories: np.ndarray | None
    category_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class UserTable:
    """Raw user features, keyed by original user id; M rows in any order, each id once.

    Attributes:
      ids: [M] original ids, integers or strings.
      features: int32 [M, F] categorical values 1..size-1, 0 unknown.
      names, sizes: per feature its name and the number of its values, the unknown one included.
    """

    ids: np.ndarray
    features: np.ndarray
    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class InteractionLog:
    """Behaviours of U users over N items, grouped by user and in time order.

    Attributes:
      name: what the log is called in reports.
      offsets: int64 [U + 1]; the behaviours of user u, oldest first, are rows offsets[u]:offsets[u + 1].
      items: int32 [rows], item ids 1..N; 0 is kept for padding.
      times: int64 [rows], unix seconds, or positions where the times are not real.
      user_ids: [U] original ids, integers or strings, ascending.
      item_ids: [N + 1] original ids, ascending from row 1; row 0 is a placeholder (-1 or "").
      titles: [N + 1] strings, or None.
      categories: int32 [N + 1, C] category ids 1..G, 0 padding, or None.
      category_names: name g - 1 belongs to category g.
      content: float32 [N + 1, F] content vectors, row 0 zeros, or None.
      user_features: int32 [U, F] values 1..size-1, 0 unknown, or None.
      user_feature_names, user_feature_sizes: per feature its name and its number of values, the unknown one included.

    Raises:
      DataError: the arrays do not fit together.
    """

    name: str
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    titles: np.ndarray | None = None
    categories: np.ndarray | None = None
    category_names: tuple[str, ...] = ()
    content: np.ndarray | None = None
    user_features: np.ndarray | None = None
    user_feature_names: tuple[str, ...] = ()
    user_feature_sizes: tuple[int, ...] = ()

    def __post_init__(self):
        fault = next(_faults(self), None)
        if fault is not None:
            raise DataError(f"log {self.name}, field {fault[0]}: {fault[1]}; build logs with `build_log`")

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """N, without the padding row."""
        return len(self.item_ids) - 1

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All behaviours in passes of bounded memory: rows as a slice, and int32 [rows of it] the user of each."""
        for start in range(0, len(self.items), BLOCK):
            stop = min(start + BLOCK, len(self.items))
            first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1
            counts = np.diff(np.clip(self.offsets[first : last + 2], start, stop))
            yield slice(start, stop), np.repeat(np.arange(first, last + 1, dtype=np.int32), counts)

    def digest(self) -> str:
        """SHA-256 (hex) of everything but the name: equal if and only if a run would see the same data."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256()
        for field in dataclasses.fields(self):
            if field.name == "name":
                continue
            value = getattr(self, field.name)
            sha.update(f"{field.name}:{np.shape(value) if value is not None else None};".encode())
            if value is not None:
                for part in _bytes(np.asarray(value)):
                    sha.update(part)
        return sha.hexdigest()


def build_log(
    name: str,
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    *,
    min_user_count: int,
    min_item_count: int,
    item_features: ItemTable | None,
    user_features: UserTable | None,
) -> InteractionLog:
    """Builds the log from raw columns in file order.

    Ids become dense in ascending order of the original id. Behaviours are sorted by (user, time), ties in file order.
    Users and items with fewer behaviours than the minimum are dropped, again and again until none is left to drop.
    Items or users that the feature tables do not know get none; features of ids outside the log are dropped.

    Args:
      users, items: [rows] integers or strings.
      times: [rows] integers.

    Raises:
      DataError: columns of unequal length or wrong type, no rows, no user left after the filters, an id listed twice in
        a feature table, or a table whose ids are of another type than those of the log, or none of which is in it.
    """
    users, items, times = _id_column(users, "user"), _id_column(items, "item"), _time_column(times)
    if not len(users) == len(items) == len(times):
        raise DataError(
            f"log {name}: {len(users)} users, {len(items)} items and {len(times)} times; give one each per row"
        )
    if len(users) == 0:
        raise DataError(f"log {name}: empty log, no behaviour in it; check the file and the source's row filters")
    user_ids, user = np.unique(users, return_inverse=True)
    item_ids, item = np.unique(items, return_inverse=True)
    rows = surviving_rows(user, item, min_user_count, min_item_count)
    if len(rows) == 0:
        raise no_user_left(name, min_user_count, min_item_count)
    user_ids, user = _dense(user_ids, user[rows])
    item_ids, item = _dense(item_ids, item[rows])
    times = times[rows]
    order = time_order(user, times)
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    np.cumsum(np.bincount(user), out=offsets[1:])
    return InteractionLog(
        name=name,
        offsets=offsets,
        items=(item[order] + 1).astype(np.int32),
        times=times[order],
        user_ids=user_ids,
        item_ids=with_padding_row(item_ids),
        **item_fields(name, item_ids, item_features),
        **user_fields(name, user_ids, user_features),
    )


def no_user_left(name: str, min_user_count: int, min_item_count: int) -> DataError:
    """What is wrong where the count filters leave nothing."""
    return DataError(
        f"log {name}: no user left after the filters; lower data.min_user_count ({min_user_count}) "
        f"or data.min_item_count ({min_item_count})"
    )


def with_padding_row(item_ids: np.ndarray) -> np.ndarray:
    """Own ids of items [N], with the placeholder of row 0 before them: -1 or "", [N + 1]."""
    placeholder = np.array([-1 if item_ids.dtype.kind == "i" else ""], item_ids.dtype)
    return np.concatenate([placeholder, item_ids])


def surviving_rows(user: np.ndarray, item: np.ndarray, min_user_count: int, min_item_count: int) -> np.ndarray:
    """Ascending indices of the rows in the largest sub-log in which every user and item has its minimum count.

    Args:
      user, item: integers >= 0 [rows].
    """
    rows = np.arange(len(user))
    while len(rows):
        user_count, item_count = np.bincount(user[rows]), np.bincount(item[rows])
        keep = (user_count[user[rows]] >= min_user_count) & (item_count[item[rows]] >= min_item_count)
        if keep.all():
            break
        rows = rows[keep]
    return rows


def time_order(user: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Row numbers [rows] in the order of a log: by user, then by time, ties as they come.

    Args:
      user: integers >= 0 [rows].
      times: int64 [rows].
    """
    if not len(user):
        return np.zeros(0, np.int64)
    low, last = int(times.min()), len(user) - 1
    time_bits, row_bits = (int(times.max()) - low).bit_length(), last.bit_length()
    if int(user.max()).bit_length() + time_bits + row_bits > 63:
        return np.lexsort((times, user))
    # All three in one number: sorting numbers takes a fraction of the time of a stable sort of their places.
    key = (user.astype(np.int64) << (time_bits + row_bits)) | ((times - low) << row_bits) | np.arange(len(user))
    return np.sort(key) & ((1 << row_bits) - 1)


def attach_content(log: InteractionLog, path: str) -> InteractionLog:
    """The log with content vectors read from a .npy file, float [rows, F], row i for the item whose original id is i.

    Raises:
      DataError: file missing or not a 2-D float array, item ids not integers or beyond the rows, NaN or infinity.
    """
    if log.item_ids.dtype.kind != "i":
        raise DataError(
            f"{path}: rows are found by integer item id, but the ids of log {log.name} are strings; renumber the items"
        )
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; set data.content to a .npy file, or to '' for none") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy array ({error}); write it with numpy.save") from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f":
        found = f"{table.dtype} {list(table.shape)}" if isinstance(table, np.ndarray) else "an archive of arrays"
        raise DataError(f"{path}: expected a 2-D float array [rows, F] of content vectors, found {found}")
    ids = log.item_ids[1:]
    outside = ids[(ids < 0) | (ids >= len(table))]
    if len(outside):
        raise DataError(
            f"{path}: item id {outside[0]} is beyond the {len(table)} rows; row i must hold the vector of item id i"
        )
    content = np.zeros((len(ids) + 1, table.shape[1]), np.float32)
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is reported below
        content[1:] = table[ids]
    bad = np.flatnonzero(~np.isfinite(content).all(axis=1))
    if len(bad):
        raise DataError(
            f"{path}, row {log.item_ids[bad[0]]}: NaN or infinite content vector; fill or drop it before saving"
        )
    return dataclasses.replace(log, content=content)


def _id_column(values: np.ndarray, field: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return _int64(values, f"{field} ids")
    if values.dtype.kind == "U" or values.size == 0:
        return values
    raise DataError(f"{field} ids: expected integers or strings, found {values.dtype}; convert the column")


def _int64(values: np.ndarray, field: str) -> np.ndarray:
    if values.dtype.kind == "u" and values.size and values.max() >= 2**63:
        raise DataError(f"{field}: {values.max()} does not fit int64; give smaller numbers, or ids as strings")
    return values.astype(np.int64, copy=False)


def _time_column(times: np.ndarray) -> np.ndarray:
    times = np.asarray(times)
    if times.dtype.kind not in "iu" and times.size:
        raise DataError(f"times: expected whole seconds, found {times.dtype}; convert the column")
    return _int64(times, "times")


def _dense(ids: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids still in use, and the codes [rows] renumbered to point into them."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    return ids[used], (np.cumsum(used) - 1)[codes]


def item_fields(name: str, ids: np.ndarray, table: ItemTable | None) -> dict:
    """The fields of a log that describe its items, whose original ids are `ids` [N], ascending.

    Raises:
      DataError: the table is of other ids or lists one twice.
    """
    if table is None:
        return {}
    source, target = _matches(name, "item", table.ids, ids)
    fields = {"category_names": tuple(table.category_names)}
    if table.titles is not None:
        fields["titles"] = np.zeros(len(ids) + 1, np.asarray(table.titles).dtype)
        fields["titles"][target + 1] = table.titles[source]
    if table.categories is not None:
        fields["categories"] = np.zeros((len(ids) + 1, table.categories.shape[1]), np.int32)
        fields["categories"][target + 1] = table.categories[source]
    return fields


def user_fields(name: str, ids: np.ndarray, table: UserTable | None) -> dict:
    """The fields of a log that describe its users, whose original ids are `ids` [U], ascending.

    Raises:
      DataError: the table is of other ids or lists one twice.
    """
    if table is None:
        return {}
    source, target = _matches(name, "user", table.ids, ids)
    features = np.zeros((len(ids), table.features.shape[1]), np.int32)
    features[target] = table.features[source]
    return {
        "user_features": features,
        "user_feature_names": tuple(table.names),
        "user_feature_sizes": tuple(table.sizes),
    }


def _matches(name: str, field: str, table_ids: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the table and positions in the ascending `ids` that carry the same id."""
    table_ids = _id_column(table_ids, f"{field} table")
    if len(table_ids) and table_ids.dtype.kind != ids.dtype.kind:
        raise DataError(
            f"log {name}: {field} ids are {ids.dtype} in the log and {table_ids.dtype} in the "
            f"{field} table; use one type"
        )
    unique, counts = np.unique(table_ids, return_counts=True)
    if len(unique) < len(table_ids):
        raise DataError(
            f"log {name}: {field} id {unique[counts > 1][0]} is listed twice in the {field} table; keep one row per id"
        )
    if not len(table_ids):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    target = np.minimum(np.searchsorted(ids, table_ids), len(ids) - 1)
    source = np.flatnonzero(ids[target] == table_ids)
    if not len(source):
        raise DataError(
            f"log {name}: not one {field} id of the {field} table is in the log ({table_ids[0]} in the table, "
            f"{ids[0]} in the log); use the same ids in both, or leave the table out"
        )
    return source, target[source]


def _bytes(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """Contents of an array, independent of byte order and of the width that strings are stored in."""
    if array.dtype.kind == "U":
        flat = array.ravel()
        for start in range(0, len(flat), _STRINGS):
            yield ("\0" * (start > 0) + "\0".join(flat[start : start + _STRINGS].tolist())).encode()
    else:
        order = array.dtype.newbyteorder("<")
        yield order.str.encode()
        yield np.ascontiguousarray(array, order).reshape(-1).view(np.uint8).data  # a view: a column may be on disk


def _faults(log: InteractionLog):
    """Yields (field, problem) for what is wrong with the log."""
    users, rows, items = len(log.user_ids), len(log.items), len(log.item_ids)
    if (
        len(log.offsets) != users + 1
        or log.offsets[0] != 0
        or log.offsets[-1] != rows
        or (np.diff(log.offsets) < 0).any()
    ):
        yield "offsets", f"must rise from 0 to the {rows} rows in {users} steps"
    if len(log.times) != rows:
        yield "times", f"{len(log.times)} times for {rows} behaviours"
    if rows and (log.items.min() < 1 or log.items.max() >= items):
        yield "items", f"item ids must lie in 1..{items - 1}"
    if any(_falls(log, start) for start in range(0, rows, BLOCK)):
        yield "times", "must not fall within a user"
    for field, expected in (("titles", items), ("categories", items), ("content", items), ("user_features", users)):
        value = getattr(log, field)
        if value is not None and len(value) != expected:
            yield field, f"{len(value)} rows where {expected} are expected"
    if log.categories is not None and log.categories.size and log.categories.max() > len(log.category_names):
        yield "categories", f"id {log.categories.max()} is beyond the {len(log.category_names)} names"
    if log.user_features is not None and (log.user_features >= np.array(log.user_feature_sizes, np.int64)).any():
        yield "user_features", "a value reaches its feature's size"


def _falls(log: InteractionLog, start: int) -> bool:
    """Whether time falls within a user in a block, or on to the first row of the next one."""
    times = log.times[start : start + BLOCK + 1]
    later = np.flatnonzero(times[1:] < times[:-1]) + start + 1
    return bool((log.offsets[np.searchsorted(log.offsets, later)] != later).any())
