"""Evaluation protocols: which behaviours train, which are validation and test targets (docs: the three protocols).

A target is (user, position), position 0-based in the user's behaviours; everything before it is its history.
"""

import dataclasses

import numpy as np

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import DataError, InteractionLog


@dataclasses.dataclass(frozen=True)
class Targets:
    """users int32 [n], positions int32 [n]."""

    users: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def first(self, n: int) -> "Targets":
        """The first n targets."""
        return Targets(self.users[:n], self.positions[:n])


@dataclasses.dataclass(frozen=True)
class Split:
    """Behaviours of user u at positions below train_end[u] (int64 [U]) may be learned from; the rest is evaluation."""

    train_end: np.ndarray
    validation: Targets
    test: Targets


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
    first, second = (np.quantile(log.times, q) for q in (validation_cut, test_cut))
    users = np.repeat(np.arange(log.n_users, dtype=np.int32), np.diff(log.offsets))
    positions = (np.arange(len(log.items)) - log.offsets[users]).astype(np.int32)
    train_end = np.bincount(users[log.times < first], minlength=log.n_users)
    sides = [(log.times >= first) & (log.times < second), log.times >= second]
    return Split(train_end, *(Targets(users[side], positions[side]) for side in sides))


def random_targets(
    log: InteractionLog, users: np.ndarray, first: int, per_user: int, generator: np.random.Generator
) -> Targets:
    """Up to `per_user` distinct positions each, uniform over [min(first, n - 1), n - 1]; none for a user with n < 2."""
    counts = np.diff(log.offsets)[users]
    users, counts = users[counts >= 2], counts[counts >= 2]
    low = np.maximum(np.minimum(first, counts - 1), 1)
    sizes = counts - low
    row = np.repeat(np.arange(len(users)), sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    position = np.arange(sizes.sum()) - np.repeat(starts - low, sizes)
    shuffled = np.lexsort((generator.random(len(row)), row))
    place = np.arange(len(row)) - starts[row]
    chosen = np.sort(shuffled[place < per_user])
    return Targets(users[row[chosen]].astype(np.int32), position[chosen].astype(np.int32))
