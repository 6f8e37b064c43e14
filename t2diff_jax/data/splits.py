"""Evaluation protocols: which behaviours train, which are validation and test targets (docs: the three protocols).

A target is (user, position), position 0-based in the user's behaviours; everything before it is its history.
"""

import dataclasses

import numpy as np

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import BLOCK, DataError, InteractionLog


@dataclasses.dataclass(frozen=True)
class Targets:
    """users int32 [n], positions int32 [n]."""

    users: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def first(self, n: int) -> "Targets":
        """The first n targets."""
        return self.at(np.arange(min(n, len(self))))

    def at(self, rows: np.ndarray) -> "Targets":
        """Some of them: numbers, or bool [n]."""
        return Targets(self.users[rows], self.positions[rows])


@dataclasses.dataclass(frozen=True)
class Split:
    """Behaviours of user u at positions below train_end[u] (int64 [U]) may be learned from; the rest is evaluation."""

    train_end: np.ndarray
    validation: Targets
    test: Targets


def requests_now(log: InteractionLog) -> Targets:
    """The request of every user after the last behaviour: a position of which it is not known yet what came."""
    return Targets(np.arange(log.n_users, dtype=np.int32), np.diff(log.offsets).astype(np.int32))


def make_split(log: InteractionLog, config: DataConfig, seed: int) -> Split:
    """The split that `config.protocol` names. The same log, config and seed give the same split.

    Raises:
      DataError: no training target, no validation target or no test target is left.
    """
    match config.protocol:
        case "user_holdout":
            split = user_holdout(log, config, seed)
        case "leave_one_out":
            split = leave_one_out(log)
        case "temporal":
            split = temporal(log, config.validation_cut, config.test_cut)
    if not (split.train_end > 1).any():
        raise DataError(f"{log.name}: no training user with two behaviours under {config.protocol}; use a larger log")
    for name in ("validation", "test"):
        if not len(getattr(split, name)):
            raise DataError(f"{log.name}: no {name} target under {config.protocol}; use a larger log or another split")
    return split


def user_holdout(log: InteractionLog, config: DataConfig, seed: int) -> Split:
    """The paper's: `test_users` of the users test, `validation_users` of the others validate, at random positions."""
    generator = np.random.default_rng([seed, 0])
    order = generator.permutation(log.n_users)
    n_test = max(1, round(config.test_users * log.n_users))
    n_validation = max(1, round(config.validation_users * (log.n_users - n_test)))
    test, validation = order[:n_test], order[n_test : n_test + n_validation]
    train_end = np.diff(log.offsets)
    train_end[test] = train_end[validation] = 0
    sides = [
        random_targets(log, np.sort(users), config.first_target, positions, generator)
        for users, positions in ((validation, config.validation_positions), (test, config.eval_positions))
    ]
    return Split(train_end, *sides)


def leave_one_out(log: InteractionLog) -> Split:
    """The last behaviour tests, the one before it validates; users with fewer than three only train."""
    counts = np.diff(log.offsets)
    users = np.flatnonzero(counts >= 3).astype(np.int32)
    last = counts[users].astype(np.int32)
    return Split(np.where(counts >= 3, counts - 2, counts), Targets(users, last - 2), Targets(users, last - 1))


def temporal(log: InteractionLog, validation_cut: float, test_cut: float) -> Split:
    """Two global cuts in time: a behaviour from the first cut on is a target, with all earlier ones as its history."""
    first, second = (time_quantile(log, q) for q in (validation_cut, test_cut))
    train_end, sides = np.zeros(log.n_users, np.int64), ([], [])
    for rows, users in log.blocks():
        times = log.times[rows]
        train_end += np.bincount(users[times < first], minlength=log.n_users)
        for side, low, high in zip(sides, (first, second), (second, np.inf), strict=True):
            at = np.flatnonzero((times >= low) & (times < high))
            side.append((users[at], (at + rows.start - log.offsets[users[at]]).astype(np.int32)))
    return Split(train_end, *(Targets(*map(np.concatenate, zip(*side, strict=True))) for side in sides))


def time_quantile(log: InteractionLog, q: float) -> float:
    """`numpy.quantile(log.times, q)` in passes of bounded memory."""
    place = q * (len(log.times) - 1)
    around = [_order_statistic(log, rank) for rank in (int(place), min(int(place) + 1, len(log.times) - 1))]
    return float(np.quantile(around, place - int(place)))


def _order_statistic(log: InteractionLog, rank: int) -> int:
    """The time of 0-based rank `rank`, found 16 bits a pass: each counts times by the next bits of what is left."""
    low, span = int(log.times.min()), int(log.times.max()) - int(log.times.min())
    for shift in range((max(span.bit_length(), 1) - 1) // 16 * 16, -1, -16):
        counts = np.zeros(1 << 16, np.int64)
        for rows, _ in log.blocks():
            digit = (log.times[rows] - low) >> shift
            counts += np.bincount(digit[(digit >= 0) & (digit < 1 << 16)], minlength=1 << 16)
        digit = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank -= int(counts[:digit].sum())
        low += digit << shift
    return low


def random_targets(
    log: InteractionLog, users: np.ndarray, first: int, per_user: int, generator: np.random.Generator
) -> Targets:
    """Up to `per_user` distinct positions each, uniform over [min(first, n - 1), n - 1]; none for a user with n < 2."""
    counts = np.diff(log.offsets)[users]
    users, counts = users[counts >= 2], counts[counts >= 2]
    low = np.maximum(np.minimum(first, counts - 1), 1)
    ends = np.cumsum(counts - low)
    # Some users at a time: the sides of a large log hold too many positions for one shuffle.
    cuts = np.unique(np.searchsorted(ends, np.arange(BLOCK, ends[-1] if len(ends) else 0, BLOCK)))
    groups = zip(*(np.split(column, cuts) for column in (users, low, counts)), strict=True)
    chosen = [_choose(*group, per_user, generator) for group in groups]
    return Targets(*(np.concatenate(column).astype(np.int32) for column in zip(*chosen, strict=True)))


def _choose(
    users: np.ndarray, low: np.ndarray, ends: np.ndarray, per_user: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Users and positions: of each user up to `per_user` of low..end - 1."""
    sizes = ends - low
    row = np.repeat(np.arange(len(users)), sizes)
    starts = np.cumsum(sizes) - sizes
    position = np.arange(len(row)) - np.repeat(starts - low, sizes)
    shuffled = np.lexsort((generator.random(len(row)), row))
    place = np.arange(len(row)) - starts[row]
    chosen = np.sort(shuffled[place < per_user])
    return users[row[chosen]], position[chosen]
