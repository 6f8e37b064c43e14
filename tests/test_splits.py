"""The three protocols: hand-made logs, the properties that keep evaluation honest, errors."""

import numpy as np
import pytest
from data_files import data_config
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import make_log, random_log

from t2diff_jax.data import log as log_module
from t2diff_jax.data import splits as splits_module
from t2diff_jax.data.log import DataError
from t2diff_jax.data.splits import (
    Split,
    Targets,
    leave_one_out,
    make_split,
    random_targets,
    requests_now,
    temporal,
    time_quantile,
    user_holdout,
)


def pairs(targets):
    return list(zip(targets.users.tolist(), targets.positions.tolist(), strict=True))


def lengths_log(*lengths):
    return make_log([list(range(1, n + 1)) for n in lengths])


def test_targets():
    targets = Targets(np.array([4, 5, 6], np.int32), np.array([1, 2, 3], np.int32))
    assert len(targets) == 3
    assert pairs(targets.first(2)) == [(4, 1), (5, 2)]
    assert len(targets.first(9)) == 3


# --- leave_one_out ---------------------------------------------------------------------------------------------------


def test_requests_now():
    now = requests_now(lengths_log(3, 1, 7))
    assert pairs(now) == [(0, 3), (1, 1), (2, 7)] and now.users.dtype == now.positions.dtype == np.int32


def test_leave_one_out_by_hand():
    split = leave_one_out(lengths_log(5, 2, 3, 1))
    assert split.train_end.tolist() == [3, 2, 1, 1]
    assert pairs(split.validation) == [(0, 3), (2, 1)]
    assert pairs(split.test) == [(0, 4), (2, 2)]  # position 4: the validation item, at 3, is part of the test history


# --- temporal --------------------------------------------------------------------------------------------------------


def test_temporal_by_hand():
    # Ten behaviours at times 0..9: the quantiles .5 and .8 are 4.5 and 7.2.
    log = make_log([[1, 2, 3, 4], [5, 6], [7, 8, 9], [10]], [[0, 1, 5, 8], [2, 6], [3, 4, 7], [9]])
    split = temporal(log, 0.5, 0.8)
    assert split.train_end.tolist() == [2, 1, 2, 0]
    assert pairs(split.validation) == [(0, 2), (1, 1), (2, 2)]
    assert pairs(split.test) == [
        (0, 3),
        (3, 0),
    ]  # user 0's history has rolled over its validation item; user 3 has none


def test_temporal_has_no_future_leakage():
    log = random_log(users=50)
    split = temporal(log, 0.6, 0.8)
    first, second = np.quantile(log.times, [0.6, 0.8])
    at = {side: log.times[log.offsets[t.users] + t.positions] for side, t in vars(split).items() if side != "train_end"}
    position = np.arange(len(log.items)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    trains = position < np.repeat(split.train_end, np.diff(log.offsets))
    assert (log.times[trains] < first).all() and (log.times[~trains] >= first).all()
    assert ((at["validation"] >= first) & (at["validation"] < second)).all() and (at["test"] >= second).all()
    assert len(at["validation"]) + len(at["test"]) + trains.sum() == len(log.items)  # every behaviour has one place


def test_temporal_puts_equal_times_on_one_side():
    log = make_log([[1, 2], [3, 4], [5, 6]], [[0, 7], [7, 7], [7, 9]])
    split = temporal(log, 0.5, 0.9)
    assert split.train_end.tolist() == [1, 0, 0]
    assert pairs(split.validation) == [(0, 1), (1, 0), (1, 1), (2, 0)]
    assert pairs(split.test) == [(2, 1)]


def test_cuts_in_passes_over_blocks_of_rows_are_the_same(monkeypatch):
    log = random_log(0)
    whole = temporal(log, 0.6, 0.8)
    monkeypatch.setattr(log_module, "BLOCK", 7)
    parts = temporal(log, 0.6, 0.8)
    assert pairs(parts.validation) == pairs(whole.validation) and pairs(parts.test) == pairs(whole.test)
    np.testing.assert_array_equal(parts.train_end, whole.train_end)


@given(st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3), min_size=1, max_size=40), st.floats(0, 1))
@settings(deadline=None)
def test_the_quantile_is_that_of_numpy(times, q):
    log = make_log([[1] * len(times)], [sorted(times)])
    assert time_quantile(log, q) == np.quantile(log.times, q)


# --- user_holdout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 50])
def test_positions_drawn_for_some_users_at_a_time_are_the_same(monkeypatch, size):
    log, users = random_log(3), np.arange(1, 20)
    whole = random_targets(log, users, 5, 3, np.random.default_rng(0))
    monkeypatch.setattr(splits_module, "BLOCK", size)
    assert pairs(random_targets(log, users, 5, 3, np.random.default_rng(0))) == pairs(whole)


def holdout(log, seed=0, **changes):
    return user_holdout(log, data_config("synthetic", **changes), seed)


def test_user_holdout_shares_and_separation():
    log = lengths_log(*[12] * 200)
    split = holdout(log, test_users=0.2, validation_users=0.1, first_target=5)
    test, validation = set(split.test.users.tolist()), set(split.validation.users.tolist())
    trains = set(np.flatnonzero(split.train_end).tolist())
    assert (len(test), len(validation), len(trains)) == (40, 16, 144)
    assert not test & validation and not test & trains and not validation & trains
    assert (split.train_end[list(trains)] == 12).all()


def test_user_holdout_is_determined_by_the_seed():
    log = random_log(users=100)

    def key(split):
        return pairs(split.test), pairs(split.validation), split.train_end.tolist()

    assert key(holdout(log, 3)) == key(holdout(log, 3))
    tests = [set(holdout(log, seed).test.users.tolist()) for seed in range(3)]
    assert tests[0] != tests[1] != tests[2]


def test_user_holdout_of_three_users_uses_one_each():
    split = holdout(lengths_log(4, 4, 4))
    assert (len(split.test), len(split.validation), (split.train_end > 0).sum()) == (1, 1, 1)


@pytest.mark.parametrize(
    ("n", "first", "expected"), [(1, 50, []), (2, 50, [1]), (51, 50, [50]), (53, 50, [50, 51, 52]), (4, 1, [1, 2, 3])]
)
def test_random_targets_by_hand(n, first, expected):
    targets = random_targets(lengths_log(3, n), np.array([1]), first, 10, np.random.default_rng(0))
    assert pairs(targets) == [(1, position) for position in expected]


@pytest.mark.parametrize("per_user", [1, 3])
def test_random_targets_are_distinct_uniform_positions(per_user):
    log = lengths_log(*[14] * 3000)
    targets = random_targets(log, np.arange(3000), 5, per_user, np.random.default_rng(1))
    assert len(set(pairs(targets))) == len(targets) == 3000 * per_user
    assert (np.bincount(targets.users) == per_user).all()
    counts = np.bincount(targets.positions, minlength=14)
    assert (counts[:5] == 0).all()
    expected = len(targets) / 9
    assert ((counts[5:] - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees of freedom, .1 %


def test_random_targets_of_unequal_users_stay_in_range():
    log = random_log(users=300, longest=80)
    counts = np.diff(log.offsets)
    targets = random_targets(log, np.arange(300), 50, 4, np.random.default_rng(2))
    low = np.maximum(np.minimum(50, counts - 1), 1)
    assert ((targets.positions >= low[targets.users]) & (targets.positions < counts[targets.users])).all()
    found = np.bincount(targets.users, minlength=300)
    np.testing.assert_array_equal(found, np.where(counts >= 2, np.minimum(4, counts - low), 0))


def test_random_targets_of_nobody():
    assert len(random_targets(lengths_log(1, 5), np.array([0]), 5, 1, np.random.default_rng(0))) == 0
    assert len(random_targets(lengths_log(1, 5), np.array([], int), 5, 1, np.random.default_rng(0))) == 0


# --- make_split ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["user_holdout", "leave_one_out", "temporal"])
def test_make_split_holds_every_target_out(protocol):
    log = random_log(users=60)
    split = make_split(log, data_config("synthetic", protocol=protocol), 7)
    assert isinstance(split, Split)
    validation, test = set(pairs(split.validation)), set(pairs(split.test))
    assert not validation & test
    counts = np.diff(log.offsets)
    for user, position in validation | test:
        assert split.train_end[user] <= position < counts[user]
    for targets in (split.validation, split.test):
        assert targets.users.dtype == targets.positions.dtype == np.int32


def test_make_split_names_what_is_missing():
    with pytest.raises(DataError, match="toy: no training user with two behaviours under leave_one_out"):
        make_split(lengths_log(3, 1), data_config("synthetic", protocol="leave_one_out"), 0)
    with pytest.raises(DataError, match="toy: no validation target under leave_one_out"):
        make_split(lengths_log(2, 2), data_config("synthetic", protocol="leave_one_out"), 0)
    with pytest.raises(DataError, match="toy: no training user"):
        make_split(lengths_log(5, 5), data_config("synthetic"), 0)  # one tests, one validates
    equal_times = make_log([[1, 2, 3], [1, 2, 3]], [[4, 4, 4], [4, 4, 5]])
    with pytest.raises(DataError, match="temporal"):
        make_split(equal_times, data_config("synthetic", protocol="temporal"), 0)
