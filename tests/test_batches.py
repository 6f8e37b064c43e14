"""Batches: windows against a loop over examples, the training order, leaks, process shares, prefetching."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import reference_data as reference
from data_files import data_config
from toy import make_log, random_log

from configs import base
from t2diff_jax.config_values import from_mapping
from t2diff_jax.data.batches import (
    TrainingOrder,
    Windows,
    evaluation_batches,
    gather,
    items_before,
    make_batch_at,
    prefetch,
    seen_items,
)
from t2diff_jax.data.splits import Split, Targets, make_split, requests_now

PLAIN = Windows(length=5, session_length=3, session_gap=0, lags=True)


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def every_target(log):
    users = np.repeat(np.arange(log.n_users), np.diff(log.offsets))
    return users, np.arange(len(log.items)) - log.offsets[users]


# --- gather ----------------------------------------------------------------------------------------------------------


def test_windows_of_a_configuration():
    config = base.get_config()
    config.model.session_gap = 60
    assert Windows.of(from_mapping(config)) == Windows(50, 10, 60, True)


def test_gather_by_hand():
    log = make_log([[9, 8], [1, 2, 3, 4, 5, 6, 7]], [[0, 1], [10, 11, 12, 40, 41, 100, 100]])
    batch = gather(log, np.array([1, 1, 0, -1]), np.array([6, 2, 0, 0]), PLAIN)
    assert batch["history"].tolist() == [[2, 3, 4, 5, 6], [0, 0, 0, 1, 2], [0] * 5, [0] * 5]
    assert batch["target"].tolist() == [7, 3, 9, 0]
    assert batch["session_length"].tolist() == [3, 2, 0, 0]
    assert batch["weight"].tolist() == [1, 1, 1, 0]
    assert batch["user"].tolist() == [1, 1, 0, 0] and batch["position"].tolist() == [6, 2, 0, 0]
    assert batch["age"].tolist() == [[89, 88, 60, 59, 0], [0, 0, 0, 2, 1], [0] * 5, [0] * 5]
    assert "user_features" not in batch


def test_a_request_after_the_last_behaviour_is_that_before_one_that_comes_at_once():
    items, times = [[9, 8], [1], [1, 2, 3, 4, 5, 6, 7]], [[0, 1], [5], [10, 11, 12, 40, 41, 100, 100]]
    log, one_more = make_log(items, times), make_log([[*i, 3] for i in items], [[*t, t[-1]] for t in times])
    now, users = requests_now(log), np.array([0, 1, 2, -1])
    for windows in (PLAIN, dataclasses.replace(PLAIN, session_gap=30)):
        batch, positions = gather(log, users, np.append(now.positions, 0), windows), np.append(now.positions, 0)
        expected = gather(one_more, users, positions, windows)
        assert batch.pop("target").tolist() == [0] * 4 and expected.pop("target").tolist() == [3, 3, 3, 0]
        equal(batch, expected)
    every = np.arange(len(users))
    np.testing.assert_array_equal(
        seen_items(log, users, positions, every), seen_items(one_more, users, positions, every)
    )


@pytest.mark.parametrize("seconds", [0, 1, 2**31 - 2, 2**31 - 1, 2**31, 2**60])
def test_ages_are_clipped_not_wrapped(seconds):
    log = make_log([[1, 2]], [[0, seconds]])
    age = gather(log, np.array([0]), np.array([1]), PLAIN)["age"]
    assert age[0].tolist() == [0, 0, 0, 0, min(seconds, 2**31 - 1)] and age.dtype == np.int32


@pytest.mark.parametrize(("gap", "session"), [(0, 4), (1, 1), (2, 2), (29, 2), (30, 4)])
def test_session_ends_at_a_gap(gap, session):
    log = make_log([[1, 2, 3, 4, 5, 6]], [[0, 60, 61, 91, 93, 500]])
    batch = gather(log, np.array([0]), np.array([5]), Windows(5, 4, gap, False))
    assert batch["session_length"].tolist() == [session]
    assert "age" not in batch


@pytest.mark.parametrize(
    "windows",
    [PLAIN, Windows(8, 8, 100, True), Windows(1, 1, 5, True), Windows(60, 10, 0, False), Windows(20, 1, 0, True)],
    ids=str,
)
def test_gather_against_a_loop(windows):
    log = random_log(users=30)
    users, positions = every_target(log)
    users = np.where(np.arange(len(users)) % 7 == 3, -1, users)  # rows of weight 0 in between
    batch = gather(log, users, positions, windows)
    assert {v.dtype for k, v in batch.items() if k != "weight"} == {np.dtype(np.int32)}
    options = dict(length=windows.length, session_length=windows.session_length, session_gap=windows.session_gap)
    for b, (user, position) in enumerate(zip(users, positions, strict=True)):
        row = {name: value[b].tolist() for name, value in batch.items()}
        if user < 0:
            filler = {"user_features", "user", "position"}
            assert not any(np.any(value) for name, value in row.items() if name not in filler)
            continue
        expected = reference.example(log, user, position, **options)
        for name in ("history", "target", "session_length", *(["age"] if windows.lags else [])):
            assert row[name] == expected[name], (name, user, position)
        assert (row["user"], row["position"], row["weight"]) == (user, position, 1.0)
        assert row["user_features"] == log.user_features[user].tolist()


def test_seen_items_against_a_loop():
    log = random_log(users=30, longest=200)
    users, positions = every_target(log)
    users = np.where(np.arange(len(users)) % 5 == 2, -1, users)
    seen = seen_items(log, users, positions, np.arange(len(users)))
    assert seen.dtype == np.int32
    for row, user, position in zip(seen, users, positions, strict=True):
        start = log.offsets[user]
        expected = [] if user < 0 else log.items[start : start + position].tolist()
        assert row.tolist() == expected + [0] * (len(row) - len(expected))


@pytest.mark.parametrize("width", [1, 7, 300])
def test_items_before_against_a_loop(width):
    """The latest that lie before the window, right-aligned; with the window they are all that came, or the last."""
    log = random_log(users=30, longest=200)
    users, positions = every_target(log)
    users = np.where(np.arange(len(users)) % 5 == 2, -1, users)
    before = items_before(log, users, positions, PLAIN.length, width)
    assert before.dtype == np.int32 and before.shape == (len(users), width)
    for row, user, position in zip(before, users, positions, strict=True):
        start = log.offsets[user]
        all_before = [] if user < 0 else log.items[start : start + max(0, position - PLAIN.length)].tolist()
        expected = all_before[-width:]
        assert row.tolist() == [0] * (width - len(expected)) + expected


@pytest.mark.parametrize(("longest", "width"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 256)])
def test_seen_items_come_in_few_widths(longest, width):
    log = make_log([[1] * 130])
    for rows in (np.array([0, 1]), np.array([0])):  # a process's share is as wide as the whole
        assert seen_items(log, np.array([0, 0]), np.array([0, longest]), rows).shape == (len(rows), width)


# --- the order of training targets -----------------------------------------------------------------------------------


def order_of(log, split, seed=0, **changes):
    return TrainingOrder.of(split, dataclasses.replace(data_config("synthetic"), **changes), seed)


def pairs(targets):
    return list(zip(targets.users.tolist(), targets.positions.tolist(), strict=True))


def split_at(log, train_end):
    return Split(np.array(train_end), *[Targets(np.zeros(0, np.int32), np.zeros(0, np.int32))] * 2)


def test_every_position_once_per_epoch():
    log = random_log(users=40)
    split = make_split(log, data_config("synthetic", protocol="leave_one_out"), 0)
    order = order_of(log, split, training_targets="every", first_target=4)
    expected = {
        (user, position)
        for user, end in enumerate(split.train_end.tolist())
        for position in range(max(min(4, end - 1), 1), end)
    }
    epochs = [pairs(order.epoch(number)) for number in range(3)]
    for epoch in epochs:
        assert len(epoch) == order.epoch_size == len(expected) and set(epoch) == expected
    assert epochs[0] != epochs[1] != epochs[2]


def test_drawn_positions_are_uniform_and_new_in_every_epoch():
    log = make_log([[1] * 14] * 200)
    order = order_of(log, split_at(log, [14] * 200), targets_per_user=10, first_target=5)
    epochs = [order.epoch(number) for number in range(3)]
    assert order.epoch_size == 2000
    for epoch in epochs:
        assert (np.bincount(epoch.users) == 10).all()
        counts = np.bincount(epoch.positions, minlength=14)
        assert len(counts) == 14 and not counts[:5].any()
        assert ((counts[5:] - 2000 / 9) ** 2 / (2000 / 9)).sum() < 26.1  # chi-square, 8 degrees of freedom, .1 %
    assert sorted(pairs(epochs[0])) != sorted(pairs(epochs[1]))


def test_tiled_windows_cover_every_history():
    """Windows of 4 over 0, 1, 4, 5, 9, 30 and 36 behaviours before the last target: 0, 1, 1, 2, 3, 8 and 9 windows."""
    ends = np.array([1, 2, 5, 6, 10, 31, 37])
    log = make_log([[1] * end for end in ends])
    order = order_of(log, split_at(log, ends), training_targets="tiled", window=4, first_target=3)
    assert order.epoch_size == 0 + 1 + 1 + 2 + 3 + 8 + 9
    for number in range(30):
        epoch = order.epoch(number)
        assert np.bincount(epoch.users).tolist() == [0, 1, 1, 2, 3, 8, 9]
        for user, end in enumerate(ends):
            positions = sorted(epoch.positions[epoch.users == user].tolist())
            learned = [p - i for p in positions for i in range(4) if p - i > 0]
            assert set(learned) == set(range(1, end))  # each position, in each epoch
            assert all(p >= 4 for p in positions) or len(positions) == 1
        assert sorted(epoch.positions[epoch.users == 6].tolist()) == list(range(4, 37, 4))


def test_tiled_windows_move_from_epoch_to_epoch():
    log = make_log([[1] * 62])
    order = order_of(log, split_at(log, np.array([62])), training_targets="tiled", window=10)
    epochs = {tuple(sorted(order.epoch(number).positions.tolist())) for number in range(40)}
    assert len(epochs) > 10 and all(e[0] == 10 and e[-1] == 61 for e in epochs)


def test_the_first_target_is_a_matter_of_user_holdout():
    log = make_log([[1] * 9])
    for protocol, first in (("user_holdout", 5), ("leave_one_out", 1), ("temporal", 1)):
        changes = dict(training_targets="every", first_target=5, protocol=protocol)
        order = order_of(log, split_at(log, np.array([9])), **changes)
        assert sorted(order.epoch(0).positions.tolist()) == list(range(first, 9))


def test_fixed_targets_are_the_same_in_another_order():
    log = random_log(users=40)
    split = make_split(log, data_config("synthetic"), 0)
    order = order_of(log, split, targets_per_user=4, fixed_targets=True)
    first, second = pairs(order.epoch(0)), pairs(order.epoch(1))
    assert sorted(first) == sorted(second) and first != second


def test_order_is_determined_by_the_seed():
    log = random_log(users=40)
    split = make_split(log, data_config("synthetic"), 0)
    assert pairs(order_of(log, split, 5).epoch(2)) == pairs(order_of(log, split, 5).epoch(2))
    assert pairs(order_of(log, split, 5).epoch(2)) != pairs(order_of(log, split, 6).epoch(2))


# --- leaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["every", "drawn", "tiled"])
@pytest.mark.parametrize("protocol", ["user_holdout", "leave_one_out", "temporal"])
def test_training_targets_are_allowed_positions(protocol, kind):
    log = random_log(users=80)
    changes = dict(training_targets=kind, targets_per_user=3, first_target=3, window=10)
    config = dataclasses.replace(data_config("synthetic", protocol=protocol), **changes)
    split = make_split(log, config, 0)
    order = TrainingOrder.of(split, config, 0)
    held_out = set(pairs(split.validation)) | set(pairs(split.test))
    for number in range(4):
        for user, position in pairs(order.epoch(number)):
            assert 1 <= position < split.train_end[user]
            assert (user, position) not in held_out


@pytest.mark.parametrize("protocol", ["user_holdout", "leave_one_out", "temporal"])
def test_training_batches_do_not_depend_on_held_out_behaviours(protocol):
    log = random_log(users=80)
    config = data_config("synthetic", protocol=protocol)
    split = make_split(log, config, 0)
    users, positions = every_target(log)
    held_out = positions >= split.train_end[users]
    items = np.where(held_out, log.items % 30 + 1, log.items).astype(np.int32)
    times = np.where(held_out, log.times + 10**9, log.times)
    other = dataclasses.replace(log, items=items, times=times)
    order = TrainingOrder.of(split, config, 0)
    for step in range(order.epoch_size // 32 + 1):
        a, b = (make_batch_at(x, order, PLAIN, 32, np.arange(32))(step) for x in (log, other))
        equal(a, b)


# --- batch_at --------------------------------------------------------------------------------------------------------


def small_order(kind="every", fixed=False):
    log = make_log([[1, 2, 3, 4], [5, 6, 7], [8, 9, 10]])
    changes = dict(training_targets=kind, targets_per_user=2, first_target=1, fixed_targets=fixed)
    return log, order_of(log, split_at(log, [4, 3, 3]), 3, **changes)


@pytest.mark.parametrize("size", [1, 5, 7, 20])
@pytest.mark.parametrize(("kind", "fixed"), [("every", False), ("drawn", False), ("drawn", True)])
def test_batches_run_through_the_epochs(size, kind, fixed):
    log, order = small_order(kind, fixed)
    batch_at = make_batch_at(log, order, PLAIN, size, np.arange(size))
    steps = -(-4 * order.epoch_size // size)
    rows = joined([batch_at(step) for step in range(steps)])
    found = list(zip(rows["user"].tolist(), rows["position"].tolist(), strict=True))
    expected = [pair for number in range(40) for pair in pairs(order.epoch(number))]
    assert found == expected[: steps * size]
    assert rows["weight"].all()


def test_batch_at_is_a_pure_function_of_the_step():
    log = random_log(users=40)
    split = make_split(log, data_config("synthetic"), 0)
    order = order_of(log, split, targets_per_user=2)  # about one batch per epoch
    steps = range(12)
    one, other = (make_batch_at(log, order, PLAIN, 64, np.arange(64)) for _ in range(2))
    forward = [one(step) for step in steps]
    jumping = {step: other(step) for step in np.random.default_rng(0).permutation(12).tolist()}
    for step in steps:
        equal(forward[step], jumping[step])
        equal(forward[step], one(step))


def test_shares_of_four_processes_make_the_global_batch():
    log = random_log(users=40)
    order = order_of(log, make_split(log, data_config("synthetic"), 0))
    whole = make_batch_at(log, order, PLAIN, 32, np.arange(32))
    shares = [make_batch_at(log, order, PLAIN, 32, np.arange(8 * i, 8 * i + 8)) for i in range(4)]
    for step in (0, 3, 50):
        equal(whole(step), joined([share(step) for share in shares]))


def test_a_batch_brings_what_came_before_its_windows():
    """Windows of 3: the longest history, of 8 behaviours, leaves 4 before the window of its last target."""
    log = make_log([[1, 2, 3, 4, 5, 6, 7, 8], [9, 10]])
    order = order_of(log, split_at(log, [8, 2]), training_targets="tiled", window=3)
    assert order.longest_before == 4
    windows = dataclasses.replace(PLAIN, length=3)
    batch = make_batch_at(log, order, windows, 4, np.arange(4), before=order.longest_before)(0)
    rows = {
        user: row
        for user, position, row in zip(*map(batch.get, ("user", "position", "before")), strict=True)
        if position in (1, 7)
    }
    assert rows[0].tolist() == [1, 2, 3, 4] and rows[1].tolist() == [0, 0, 0, 0]
    assert "before" not in make_batch_at(log, order, windows, 4, np.arange(4))(0)
    assert order_of(log, split_at(log, [3, 2]), training_targets="tiled", window=3).longest_before == 0


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("size", [4, 16, 1000])
def test_evaluation_batches_hold_every_target_once(size, with_seen):
    log = random_log(users=40, longest=100)
    targets = make_split(log, data_config("synthetic", protocol="temporal"), 0).test
    assert len(targets) % size
    batches = list(evaluation_batches(log, targets, PLAIN, size, np.arange(size), with_seen=with_seen))
    assert {len(batch["target"]) for batch in batches} == {size}
    weights = np.concatenate([batch["weight"] for batch in batches])
    assert weights[: len(targets)].all() and not weights[len(targets) :].any()
    found = [(u, p) for b in batches for u, p in zip(b["user"].tolist(), b["position"].tolist(), strict=True)]
    assert found[: len(targets)] == pairs(targets)
    assert all(("seen" in batch) == with_seen for batch in batches)
    if with_seen:
        rows = [row for batch in batches for row in batch["seen"]]
        for row, user, position in zip(rows, targets.users, targets.positions, strict=False):
            assert row[row > 0].tolist() == log.items[log.offsets[user] :][:position].tolist()
        assert not any(row.any() for row in rows[len(targets) :])


def test_evaluation_shares_agree_on_the_width_of_seen():
    log = make_log([[1] * 200, [2] * 3])
    targets = Targets(np.array([0, 0, 1, 1], np.int32), np.array([199, 9, 1, 2], np.int32))
    shares = [
        list(evaluation_batches(log, targets, PLAIN, 4, rows, with_seen=True))
        for rows in (np.arange(2), np.arange(2, 4))
    ]
    whole = list(evaluation_batches(log, targets, PLAIN, 4, np.arange(4), with_seen=True))
    assert whole[0]["seen"].shape == (4, 256)
    equal(whole[0], joined([share[0] for share in shares]))


def test_no_targets_no_batches():
    none = Targets(np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert list(evaluation_batches(make_log([[1]]), none, PLAIN, 4, np.arange(4), with_seen=False)) == []


# --- prefetch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_prefetch_keeps_the_order(depth):
    def make(step):
        time.sleep(0.001 * (step % 3))
        return step

    assert list(prefetch(make, range(4, 24), depth)) == list(range(4, 24))
    assert list(prefetch(make, range(0), depth)) == []


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetch_surfaces_an_exception_in_its_place(depth):
    def make(step):
        if step == 5:
            raise ValueError("step 5 is bad")
        return step

    batches, found = prefetch(make, range(20), depth), []
    with pytest.raises(ValueError, match="step 5 is bad"):
        found.extend(batches)  # extend keeps what came before
    assert found == list(range(5))


def test_prefetch_makes_so_many_ahead_and_no_more():
    made, ready = [], threading.Event()

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        if len(made) == 4:
            ready.set()
        return step

    batches = prefetch(make, range(100), 3)
    assert made == []  # nothing is made before the first is asked for
    assert next(batches) == 0
    assert ready.wait(10)
    assert made == [(step, False) for step in range(4)]
    batches.close()


@pytest.mark.parametrize("depth", [0, 3])
def test_prefetch_closed_early_stops(depth):
    made = []

    def make(step):
        time.sleep(0.01)
        made.append(step)
        return step

    batches = prefetch(make, range(10_000), depth)
    assert [next(batches), next(batches)] == [0, 1]
    closer = threading.Thread(target=batches.close, daemon=True)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 2 + depth
