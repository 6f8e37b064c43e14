"""The interaction log: dense ids, time order, filters, features, validation, digest, content vectors."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2diff_jax.data import log as log_module
from t2diff_jax.data.log import (
    DataError,
    InteractionLog,
    ItemTable,
    UserTable,
    attach_content,
    build_log,
    surviving_rows,
    time_order,
)


def build(users, items, times, **options):
    options = {"min_user_count": 1, "min_item_count": 1, "item_features": None, "user_features": None} | options
    return build_log("toy", np.array(users), np.array(items), np.array(times), **options)


def naive_log(users, items, times, min_user, min_item):
    """Lists of (item, time) per original user, by repeated filtering of plain rows."""
    rows = list(zip(users, items, times, strict=True))
    while True:
        kept = [
            row
            for row in rows
            if sum(r[0] == row[0] for r in rows) >= min_user and sum(r[1] == row[1] for r in rows) >= min_item
        ]
        if len(kept) == len(rows):
            break
        rows = kept
    result = {user: [] for user in sorted({row[0] for row in rows})}
    for user, item, time in rows:
        result[user].append((item, time))
    return {user: sorted(behaviours, key=lambda b: b[1]) for user, behaviours in result.items()}


def as_dict(log):
    items = log.item_ids[log.items].tolist()
    spans = zip(log.user_ids.tolist(), log.offsets[:-1], log.offsets[1:], strict=True)
    return {user: list(zip(items[a:b], log.times[a:b].tolist(), strict=True)) for user, a, b in spans}


def features():
    items = ItemTable(
        np.array([30, 10, 99]),
        np.array(["thirty", "ten", "other"]),
        np.array([[2, 1], [1, 0], [2, 0]], np.int32),
        ("a", "b"),
    )
    users = UserTable(np.array([8, 7]), np.array([[2, 1], [1, 3]], np.int32), ("sex", "job"), (3, 4))
    return {"item_features": items, "user_features": users}


def test_hand_made_log():
    log = build([9, 7, 9, 9], [10, 30, 30, 20], [5, 1, 3, 4])
    assert (log.n_users, log.n_items) == (2, 3)
    np.testing.assert_array_equal(log.user_ids, [7, 9])
    np.testing.assert_array_equal(log.item_ids, [-1, 10, 20, 30])
    np.testing.assert_array_equal(log.offsets, [0, 1, 4])
    np.testing.assert_array_equal(log.items, [3, 3, 2, 1])
    np.testing.assert_array_equal(log.times, [1, 3, 4, 5])
    assert [a.dtype for a in (log.offsets, log.items, log.times)] == [np.int64, np.int32, np.int64]


def test_string_ids_are_ordered_as_strings():
    log = build(["b", "a"], ["x10", "x9"], [1, 1])
    assert log.user_ids.tolist() == ["a", "b"]
    assert log.item_ids.tolist() == ["", "x10", "x9"]
    np.testing.assert_array_equal(log.items, [2, 1])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30),
    min_user=st.integers(1, 4),
    min_item=st.integers(1, 4),
)
def test_agrees_with_naive_reference(rows, min_user, min_item):
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    expected = naive_log(users, items, times, min_user, min_item)
    if not expected:
        with pytest.raises(DataError, match=r"no user left"):
            build(users, items, times, min_user_count=min_user, min_item_count=min_item)
        return
    log = build(users, items, times, min_user_count=min_user, min_item_count=min_item)
    assert as_dict(log) == expected
    assert log.n_items == len({item for behaviours in expected.values() for item, _ in behaviours})


def test_ties_keep_file_order():
    log = build([1] * 6, [5, 3, 9, 1, 7, 2], [2, 2, 1, 2, 1, 2])
    assert log.item_ids[log.items].tolist() == [9, 7, 5, 3, 1, 2]


def test_filters_run_until_nothing_changes():
    # Item 3 falls, then user 2 (one row left), then item 2, then user 1: only user 0 with item 0 and 1 remains.
    user = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    item = np.array([0, 0, 1, 1, 0, 2, 2, 3])
    np.testing.assert_array_equal(surviving_rows(user, item, 2, 2), [0, 1, 2, 3])


def test_features_follow_their_ids():
    log = build([8, 7, 9], [20, 10, 30], [1, 1, 1], **features())
    assert log.titles.tolist() == ["", "ten", "", "thirty"]
    np.testing.assert_array_equal(log.categories, [[0, 0], [1, 0], [0, 0], [2, 1]])
    np.testing.assert_array_equal(log.user_features, [[1, 3], [2, 1], [0, 0]])
    assert (log.category_names, log.user_feature_names, log.user_feature_sizes) == (("a", "b"), ("sex", "job"), (3, 4))


def test_features_of_filtered_ids_are_dropped():
    log = build([7, 7, 8], [10, 10, 30], [1, 2, 1], min_user_count=2, **features())
    assert log.titles.tolist() == ["", "ten"]
    assert log.user_features.shape == (1, 2)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (([1, 2], [1], [1]), {}, "2 users, 1 items and 1 times; give one each per row"),
        (([], [], []), {}, "empty log.*check the file"),
        (([1, 2], [1, 1], [1, 1]), {"min_user_count": 3}, r"no user left.*lower data.min_user_count \(3\)"),
        (([1.5], [1], [1]), {}, "user ids: expected integers or strings, found float64; convert"),
        (([2**63], [1], [1]), {}, f"user ids: {2**63} does not fit int64; give smaller numbers, or ids as strings"),
        (([1], [1], [2**63]), {}, "times: 9223372036854775808 does not fit int64"),
        (([1], [1], [1.5]), {}, "times: expected whole seconds, found float64; convert"),
        ((["x"], [10], [1]), features(), "user ids are <U1 in the log and int64 in the user table; use one type"),
    ],
)
def test_bad_columns(columns, options, message):
    with pytest.raises(DataError, match=message):
        build(*columns, **options)


def test_id_listed_twice():
    table = ItemTable(np.array([10, 10]), None, None, ())
    with pytest.raises(DataError, match=r"item id 10 is listed twice in the item table; keep one row"):
        build([1], [10], [1], item_features=table)


def test_a_table_of_other_ids():
    items = ItemTable(np.array([40, 50]), None, None, ())
    with pytest.raises(
        DataError, match=r"not one item id of the item table is in the log \(40.*10.*; use the same ids"
    ):
        build([1], [10], [1], item_features=items)
    assert build([1], [50], [1], item_features=items).n_items == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offsets", np.array([0, 2, 2])),
        ("times", np.array([1, 9, 4, 5])),
        ("items", np.array([3, 3, 2, 4], np.int32)),
        ("items", np.array([3, 3, 2, 0], np.int32)),
        ("titles", np.array(["a"])),
        ("categories", np.array([[0], [1], [1], [3]], np.int32)),
        ("user_features", np.array([[3], [1]], np.int32)),
    ],
)
def test_a_log_that_does_not_fit_together(field, value):
    log = build([9, 7, 9, 9], [10, 30, 30, 20], [5, 1, 3, 4])
    log = dataclasses.replace(log, category_names=("a", "b"), user_feature_sizes=(3,))
    with pytest.raises(DataError, match=rf"field {field}"):
        dataclasses.replace(log, **{field: value})


def full_log() -> InteractionLog:
    log = build([8, 7, 9], [20, 10, 30], [1, 1, 1], **features())
    return dataclasses.replace(log, content=np.zeros((4, 2), np.float32))


def test_digest_sees_every_field_but_the_name():
    log = full_log()
    wide = dataclasses.replace(log, name="other", titles=log.titles.astype("U40"))
    assert wide.digest() == log.digest()
    changes = {
        "times": np.array([2, 1, 1]),
        "items": np.array([1, 1, 3], np.int32),
        "user_ids": np.array([7, 8, 10]),
        "item_ids": np.array([-1, 10, 20, 31]),
        "titles": np.array(["", "ten", "", "thirtz"]),
        "categories": np.array([[0, 0], [1, 0], [0, 0], [2, 0]], np.int32),
        "category_names": ("a", "c"),
        "content": np.ones((4, 2), np.float32),
        "user_features": None,
        "user_feature_sizes": (3, 5),
        "offsets": np.array([0, 2, 3, 3]),
    }
    digests = {dataclasses.replace(log, **{field: value}).digest() for field, value in changes.items()}
    assert len(digests | {log.digest()}) == len(changes) + 1
    assert len(log.digest()) == 64


def test_the_digest_does_not_depend_on_how_many_strings_are_read_at_a_time(monkeypatch):
    whole = full_log().digest()
    monkeypatch.setattr(log_module, "_STRINGS", 3)
    assert full_log().digest() == whole


def save(path, array):
    np.save(path, array)
    return str(path)


def test_content_rows_are_found_by_original_id(tmp_path):
    table = np.arange(31 * 2, dtype=np.float64).reshape(31, 2)
    log = attach_content(build([1, 1], [30, 4], [1, 2]), save(tmp_path / "c.npy", table))
    np.testing.assert_array_equal(log.content, [[0, 0], [8, 9], [60, 61]])
    assert log.content.dtype == np.float32


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros(5), r"c.npy: expected a 2-D float array.*found float64 \[5\]"),
        (np.zeros((5, 2), np.int32), "c.npy: expected a 2-D float array.*found int32"),
        (np.zeros((4, 2)), "c.npy: item id 4 is beyond the 4 rows; row i must hold"),
        (np.array([[0.0], [0], [np.nan], [0], [0]]), "c.npy, row 2: NaN or infinite.*fill or drop"),
        (np.array([[0.0], [0], [0], [0], [1e60]]), "c.npy, row 4: NaN or infinite"),
        (np.array([[None], ["x"]]), "c.npy: not a readable .npy array.*write it with numpy.save"),
    ],
)
def test_bad_content(tmp_path, table, message):
    log = build([1, 1], [2, 4], [1, 2])
    with pytest.raises(DataError, match=message):
        attach_content(log, save(tmp_path / "c.npy", table))


def test_content_file_missing_or_ids_not_numbers(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.npy: no such file; set data.content"):
        attach_content(build([1], [2], [1]), str(tmp_path / "nowhere.npy"))
    with pytest.raises(DataError, match=r"ids of log toy are strings; renumber"):
        attach_content(build([1], ["a"], [1]), save(tmp_path / "c.npy", np.zeros((3, 2))))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), max_size=30), st.sampled_from([1, 2**40, 2**60]))
@settings(deadline=None)
def test_time_order_is_that_of_a_stable_sort(rows, scale):
    user = np.array([u for u, _ in rows], np.int64)
    times = np.array([t * scale for _, t in rows], np.int64)
    assert time_order(user, times).tolist() == sorted(range(len(rows)), key=lambda i: (user[i], times[i]))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_passes_over_all_rows(monkeypatch, size):
    monkeypatch.setattr(log_module, "BLOCK", size)
    log = build([3, 1, 1, 2, 1, 3, 3, 3], [5, 6, 7, 5, 5, 8, 9, 5], [1, 2, 3, 4, 5, 6, 7, 8])
    blocks = list(log.blocks())
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(8))
    assert np.concatenate([user for _, user in blocks]).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert all(len(user) == rows.stop - rows.start <= size for rows, user in blocks)
    whole = dataclasses.replace(log)
    for fall in (1, 2, 5, 7):
        times = log.times.copy()
        times[fall] = -1
        with pytest.raises(DataError, match="field times: must not fall within a user"):
            dataclasses.replace(whole, times=times)
    times = log.times.copy()
    times[[3, 4]] = -5  # first of their users
    dataclasses.replace(whole, times=times)
