"""Batches: a pure, random-access, vectorised gather of windows; the order of training targets; prefetching.

No state: the batch of a step is a function of (log, split, seed, step), so a resumed run sees what an uninterrupted one
would have seen. Keys and alignment of a batch: `types.Batch`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from t2diff_jax.config import Config, DataConfig
from t2diff_jax.data.log import InteractionLog
from t2diff_jax.data.splits import Split, Targets

HostBatch = dict[str, np.ndarray]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a target's window is cut: L behaviours, a session of at most k, ended by a gap of `gap` seconds (0: none)."""

    length: int
    session_length: int
    session_gap: int
    lags: bool

    @staticmethod
    def of(config: Config) -> "Windows":
        """The windows of a configuration."""
        return Windows(
            config.data.window, config.model.session_length, config.model.session_gap, config.data.real_times
        )


def gather(log: InteractionLog, users: np.ndarray, positions: np.ndarray, windows: Windows) -> HostBatch:
    """The batch of the targets (users [B], positions [B]); a negative user makes a row of weight 0.

    After a user's last behaviour the target is 0, and the request comes at the time of that behaviour.
    """
    weight = (users >= 0).astype(np.float32)
    users, positions = np.maximum(users, 0), np.where(users >= 0, positions, 0)
    start = log.offsets[users]
    rows = (start + positions)[:, None] + np.arange(-windows.length, 0)
    valid = (rows >= start[:, None]) & (weight[:, None] > 0)
    rows = np.maximum(rows, 0)
    own, ends = start + positions, log.offsets[users + 1]
    known, own = (weight > 0) & (own < ends), np.minimum(own, ends - 1)
    batch = {
        "history": np.where(valid, log.items[rows], 0).astype(np.int32),
        "target": np.where(known, log.items[own], 0).astype(np.int32),
        "weight": weight,
        "user": users.astype(np.int32),
        "position": positions.astype(np.int32),
        "session_length": _session_length(log, rows, valid, windows),
    }
    if windows.lags:
        seconds = log.times[own][:, None] - log.times[rows]
        batch["age"] = np.where(valid, np.clip(seconds, 0, np.iinfo(np.int32).max), 0).astype(np.int32)
    if log.user_features is not None:
        batch["user_features"] = log.user_features[users]
    return batch


def batch_forms(
    windows: Windows, batch_size: int, user_features: int, *, before: int = 0, seen: int = 0
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of every array of a batch, without making one: what `gather` would give.

    user_features: F; 0 where the log has none. before: S of training that leaves them out, seen: S of evaluation that
    excludes earlier items; 0: none.
    """
    forms = dict.fromkeys(("target", "user", "position", "session_length"), ((batch_size,), np.int32))
    forms |= {"history": ((batch_size, windows.length), np.int32), "weight": ((batch_size,), np.float32)}
    if windows.lags:
        forms["age"] = forms["history"]
    if user_features:
        forms["user_features"] = ((batch_size, user_features), np.int32)
    forms |= {name: ((batch_size, n), np.int32) for name, n in (("before", before), ("seen", seen)) if n}
    return forms


def _session_length(log: InteractionLog, rows: np.ndarray, valid: np.ndarray, windows: Windows) -> np.ndarray:
    recent = valid[:, -windows.session_length :]
    if windows.session_gap:
        times = log.times[rows[:, -windows.session_length :]]
        joined = np.diff(times, axis=1) <= windows.session_gap
        # The last behaviour is always of the session; an earlier one if no gap lies between it and the end.
        unbroken = np.logical_and.accumulate(joined[:, ::-1], axis=1)[:, ::-1]
        recent = recent & np.pad(unbroken, ((0, 0), (0, 1)), constant_values=True)
    return recent.sum(axis=1).astype(np.int32)


def items_before(log: InteractionLog, users: np.ndarray, positions: np.ndarray, window: int, width: int) -> np.ndarray:
    """The `width` behaviours before the windows of such targets, 0-padded on the left, int32 [B, width]."""
    ends = np.where(users >= 0, positions - window, 0)[:, None]
    columns = ends + np.arange(-width, 0)
    rows = log.offsets[np.maximum(users, 0)][:, None] + np.maximum(columns, 0)
    return np.where(columns >= 0, log.items[rows], 0).astype(np.int32)


def seen_items(log: InteractionLog, users: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """All earlier items of each user of `rows` [n], 0-padded, int32 [n, S].

    S is the power of two that the whole batch needs: few shapes, so few compilations, and all processes agree on it.
    """
    lengths = np.where(users >= 0, positions, 0)
    columns = np.arange(1 << max(6, int(lengths.max(initial=1) - 1).bit_length()))
    users, lengths = users[rows], lengths[rows]
    places = log.offsets[np.maximum(users, 0)][:, None] + np.minimum(columns, np.maximum(lengths - 1, 0)[:, None])
    return np.where(columns < lengths[:, None], log.items[places], 0).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
    """The endless sequence of training targets, epoch after epoch, addressable at any index.

    Attributes:
      users, lows, ends: training users and their target positions [low, end), int64 [n] each.
      counts: targets per user and epoch, int64 [n].
      kind: `data.training_targets`, how these are chosen.
      window: behaviours before a target.
      fixed: the same positions in every epoch; the order still changes.
    """

    users: np.ndarray
    lows: np.ndarray
    ends: np.ndarray
    counts: np.ndarray
    kind: str
    window: int
    fixed: bool
    seed: int

    @staticmethod
    def of(split: Split, config: DataConfig, seed: int) -> "TrainingOrder":
        """Targets of every user with something before them.

        drawn, every: at positions [low, end - 1], low = min(first_target, end - 1) under `user_holdout`, else 1. tiled:
        as few windows as hold all behaviours, for models that learn from every position of a window.
        """
        users = np.flatnonzero(split.train_end >= 2)
        ends = split.train_end[users]
        first = config.first_target if config.protocol == "user_holdout" else 1
        lows = np.minimum(config.window if config.training_targets == "tiled" else first, ends - 1)
        counts = {
            "drawn": np.full(len(users), config.targets_per_user),
            "every": ends - lows,
            "tiled": -(-(ends - 1) // config.window),
        }[config.training_targets]
        return TrainingOrder(
            users, lows, ends, counts, config.training_targets, config.window, config.fixed_targets, seed
        )

    @property
    def epoch_size(self) -> int:
        """Targets per epoch."""
        return int(self.counts.sum())

    @property
    def longest_before(self) -> int:
        """Behaviours before the window of the target that has the most; 0 where no window is full."""
        return max(0, int(self.ends.max(initial=1)) - 1 - self.window)

    def epoch(self, number: int) -> Targets:
        """All targets of one epoch, in its order."""
        row = np.repeat(np.arange(len(self.users)), self.counts)
        turn = np.arange(len(row)) - (np.cumsum(self.counts) - self.counts)[row]
        random = np.random.default_rng([self.seed, 1, 0 if self.fixed else number]).random(len(row))
        choose = {"drawn": self._drawn, "every": self._every, "tiled": self._tiled}[self.kind]
        order = np.random.default_rng([self.seed, 2, number]).permutation(len(row))
        position = choose(row, turn, random)[order]
        return Targets(self.users[row[order]].astype(np.int32), position.astype(np.int32))

    def _drawn(self, row: np.ndarray, _turn: np.ndarray, random: np.ndarray) -> np.ndarray:
        return self.lows[row] + (random * (self.ends - self.lows)[row]).astype(np.int64)

    def _every(self, row: np.ndarray, turn: np.ndarray, _random: np.ndarray) -> np.ndarray:
        return self.lows[row] + turn

    def _tiled(self, row: np.ndarray, turn: np.ndarray, random: np.ndarray) -> np.ndarray:
        """The oldest window starts at the first behaviour, the newest ends with the last; those between move."""
        spare = (self.counts * self.window - (self.ends - 1))[row]
        between = np.maximum(self.counts[row] - 2, 1)
        overlap = np.where(turn == 0, 0, ((turn - 1 + random) / between * (spare + 1)).astype(np.int64))
        overlap = np.where(turn == self.counts[row] - 1, spare, np.minimum(overlap, spare))
        return (turn + 1) * self.window - overlap


def make_batch_at(
    log: InteractionLog, order: TrainingOrder, windows: Windows, batch_size: int, rows: np.ndarray, *, before: int = 0
) -> Callable[[int], HostBatch]:
    """`batch_at(step)`: the rows `rows` (this process's share, int [n]) of the global batch of a 0-based step.

    before: so many behaviours before the window come with it; 0: none.
    """
    epoch = functools.lru_cache(maxsize=2)(order.epoch)

    def batch_at(step: int) -> HostBatch:
        index = step * batch_size + rows
        epochs, places = np.divmod(index, order.epoch_size)
        users, positions = np.empty(len(index), np.int32), np.empty(len(index), np.int32)
        for number in np.unique(epochs):
            at, targets = epochs == number, epoch(int(number))
            users[at], positions[at] = targets.users[places[at]], targets.positions[places[at]]
        batch = gather(log, users, positions, windows)
        if before:
            batch["before"] = items_before(log, users, positions, windows.length, before)
        return batch

    return batch_at


def evaluation_batches(
    log: InteractionLog, targets: Targets, windows: Windows, batch_size: int, rows: np.ndarray, *, with_seen: bool
) -> Iterator[HostBatch]:
    """The targets in order, every one once; the last batch is filled up with rows of weight 0."""
    for start in range(0, len(targets), batch_size):
        users = _fill(targets.users[start : start + batch_size], batch_size, -1)
        positions = _fill(targets.positions[start : start + batch_size], batch_size, 0)
        batch = gather(log, users[rows], positions[rows], windows)
        if with_seen:
            batch["seen"] = seen_items(log, users, positions, rows)
        yield batch


def _fill(values: np.ndarray, size: int, value: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)), constant_values=value)


def prefetch(make: Callable[[int], T], steps: range, depth: int) -> Iterator[T]:
    """`make(step)` for each step in order, up to `depth` of them made ahead on a thread. An exception surfaces here."""
    if depth == 0:
        yield from map(make, steps)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
