"""Logs built in passes over their files, here or by Beam: the same bytes as from a log in memory."""

import dataclasses
import filecmp
import itertools
import pickle

import numpy as np
import polars as pl
import pytest
from data_files import data_config, make_kuairand, write
from hypothesis import given, settings
from hypothesis import strategies as st

from t2diff_jax.config import PrepareConfig
from t2diff_jax.config_values import ConfigError
from t2diff_jax.data import log as log_module
from t2diff_jax.data.log import DataError
from t2diff_jax.data.out_of_core import (
    ROW,
    Counted,
    Counter,
    bucket_starts,
    bucketed,
    build_out_of_core,
    count_ids,
    keep,
    merge,
    sort_rows,
)
from t2diff_jax.data.parts import Behaviours, join_ids
from t2diff_jax.data.preparation import prepare
from t2diff_jax.data.prepared import write_log
from t2diff_jax.data.sources import load_log, open_parts, text

HEADER = "user_id,item_id,timestamp"
SMALL = PrepareConfig(block_rows=3, bucket_rows=4)


def make_log(folder, *, rows=120, seed=0, names=False):
    """Parts of a log with repeats, ties in time and ids of which some look like numbers."""
    generator = np.random.default_rng(seed)
    columns = generator.integers([1, 1, 1_000], [12, 25, 1_020], (rows, 3)).tolist()
    lines = [
        f"{u},{'i' if names and i > 20 else ''}{i},{t},{'ab'[i % 2]}|c,T{i}-{n}" for n, (u, i, t) in enumerate(columns)
    ]
    for number, part in enumerate((lines[:50], lines[50:51], lines[51:])):
        write(folder / f"part-{number}.csv", f"{HEADER},genre,title", *part)
    return folder


def same(a, b):
    """Whether two folders hold the same files, byte for byte."""
    names = sorted(path.name for path in a.iterdir())
    return names == sorted(path.name for path in b.iterdir()) and all(
        filecmp.cmp(a / name, b / name, shallow=False) for name in names
    )


def config_of(data, **sizes):
    import tiny

    return dataclasses.replace(tiny.tiny(), data=data, prepare=dataclasses.replace(SMALL, **sizes))


def in_memory(data, folder):
    folder.mkdir()
    return write_log(load_log(data), folder, data)


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(("users", "items"), [(1, 1), (6, 3), (2, 5)])
@pytest.mark.parametrize("features", [False, True])
def test_the_same_bytes_as_in_memory(tmp_path, names, users, items, features):
    keys = {"table__category": "genre", "table__title": "title", "table__user_columns": ("genre",)} if features else {}
    raw = make_log(tmp_path / "raw", names=names)
    data = data_config("table", raw, min_user_count=users, min_item_count=items, **keys)
    said = []
    log = prepare(config_of(data), tmp_path / "out", said.append, beam_options=None, shared=None)
    expected = in_memory(data, tmp_path / "memory")
    assert same(tmp_path / "out", tmp_path / "memory")
    assert (log.digest(), log.name) == (expected.digest(), "raw")
    assert (users == 1) == (len(log.items) == 120)
    assert [s.split(";")[0] for s in said][
        1
    ] == f"11 users, {len(np.unique(load_log(data_config('table', raw)).items))} items, 120 behaviours"


def test_features_are_read_in_blocks_of_the_same_size(tmp_path, monkeypatch):
    data = data_config("table", make_log(tmp_path / "raw"), table__category="genre", table__title="title")
    heights = []

    def spy(table, field, ids=text.ids):
        heights.append(table.frame.height)
        return ids(table, field)

    monkeypatch.setattr(text, "ids", spy)
    prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)
    assert max(heights) == SMALL.block_rows


def test_what_is_opened_is_mapped_and_not_read(tmp_path):
    data = data_config("table", make_log(tmp_path / "raw"))
    log = prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)
    for column in (log.items, log.times):
        assert type(column) is np.ndarray and isinstance(column.base, np.memmap) and not column.flags.writeable


def test_kuairand_in_parts(tmp_path):
    data = data_config("kuairand", make_kuairand(tmp_path / "raw"))
    prepare(config_of(data, block_rows=1, bucket_rows=1), tmp_path / "out", print, beam_options=None, shared=None)
    in_memory(data, tmp_path / "memory")
    assert same(tmp_path / "out", tmp_path / "memory")


def test_parquet_in_row_blocks(tmp_path):
    csv = load_log(data_config("table", make_log(tmp_path / "raw")))
    (tmp_path / "parts").mkdir()
    for path in sorted((tmp_path / "raw").iterdir()):
        pl.read_csv(path).write_parquet(tmp_path / "parts" / f"{path.stem}.parquet", row_group_size=7)
    data = data_config("table", tmp_path / "parts")
    log = prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)
    assert log.digest() == csv.digest() == load_log(data).digest()


def test_a_source_that_is_read_at_once(tmp_path):
    data = data_config("synthetic")
    log = prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)
    assert log.digest() == load_log(data).digest()


def test_beam_gives_the_same_bytes(tmp_path):
    pytest.importorskip("apache_beam")
    keys = {"table__category": "genre", "table__title": "title"}
    data = data_config("table", make_log(tmp_path / "raw", names=True), min_user_count=6, min_item_count=3, **keys)
    in_memory(data, tmp_path / "memory")
    write(tmp_path / "shared" / "rows" / "users-000.npz", "of somebody else")
    for name, shared in (("out[1]", None), ("aside", str(tmp_path / "shared"))):
        prepare(config_of(data), tmp_path / name, print, beam_options=[], shared=shared)
        assert same(tmp_path / name, tmp_path / "memory")
    assert [path.name for path in (tmp_path / "shared").rglob("*")] == ["rows", "users-000.npz"]


def test_beam_names_the_line_that_cannot_be_read_and_leaves_nothing(tmp_path):
    pytest.importorskip("apache_beam")
    data = data_config("table", make_log(tmp_path / "raw"))
    write(tmp_path / "raw" / "part-3.csv", f"{HEADER}", "1,1,1", "1,2,then")
    with pytest.raises(Exception, match=r"part-3\.csv, line 3, field timestamp: 'then'"):
        prepare(config_of(data), tmp_path / "out", print, beam_options=[], shared=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beam", [None, []])
def test_an_empty_log(tmp_path, beam):
    if beam is not None:
        pytest.importorskip("apache_beam")
    data = data_config("table", write(tmp_path / "raw.csv", HEADER))
    with pytest.raises(DataError, match=r"raw\.csv: empty log, no behaviour in it"):
        prepare(config_of(data), tmp_path / "out", print, beam_options=beam, shared=None)
    assert not (tmp_path / "out").exists()


def test_bad_rows_name_their_line_in_any_block(tmp_path):
    data = data_config("table", make_log(tmp_path / "raw"))
    write(tmp_path / "raw" / "part-3.csv", HEADER, *["1,1,1"] * 7, "1,,2")
    with pytest.raises(DataError, match=r"part-3\.csv, line 9, field item_id: no value where an id"):
        prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)
    assert not (tmp_path / "out").exists()


def test_nothing_left_after_the_filters(tmp_path):
    data = data_config("table", make_log(tmp_path / "raw"), min_user_count=100)
    with pytest.raises(DataError, match=r"no user left after the filters; lower data\.min_user_count"):
        prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)


def test_what_prepare_refuses(tmp_path):
    data = data_config("table", make_log(tmp_path / "raw"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="out: the folder is not empty"):
        prepare(config_of(data), tmp_path / "out", print, beam_options=None, shared=None)
    assert (tmp_path / "out" / "thesis.tex").exists()
    with pytest.raises(ConfigError, match="synthetic is read in memory; leave --beam out"):
        prepare(config_of(data_config("synthetic")), tmp_path / "new", print, beam_options=[], shared=None)
    with pytest.raises(ConfigError, match="prepared already"):
        prepare(config_of(data_config("prepared")), tmp_path / "new", print, beam_options=None, shared=None)
    assert not (tmp_path / "new").exists()


def test_files_of_a_folder(tmp_path):
    raw = make_log(tmp_path / "raw")
    write(raw / "items.csv", "item_id,genre", *(f"{i},g{i % 3}" for i in range(30)))
    data = data_config("table", raw, table__item_file="items.csv", table__category="genre")
    assert load_log(data).category_names == ("g0", "g1", "g2")
    assert [path.name for path in open_parts(data).files] == ["part-0.csv", "part-1.csv", "part-2.csv"]
    pl.DataFrame({"user_id": [1]}).write_parquet(raw / "more.parquet")
    with pytest.raises(DataError, match=r"raw: files of the kinds .csv, .parquet side by side"):
        open_parts(data)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: no file .csv, .tsv, .parquet"):
        open_parts(data_config("table", tmp_path / "none"))


def test_parts_can_be_sent_to_another_machine(tmp_path):
    parts = open_parts(data_config("table", make_log(tmp_path / "raw")))
    again = pickle.loads(pickle.dumps(parts))
    assert [len(b.times) for b in again.read(again.files[0], 20)] == [20, 20, 10]


ids = st.one_of(st.lists(st.integers(-3, 5)), st.lists(st.sampled_from(["a", "7", "07", "-1"])))


@given(st.lists(ids, min_size=1, max_size=5).filter(lambda columns: any(columns)))
@settings(deadline=None)
def test_counting_in_any_grouping_is_counting_at_once(columns):
    arrays = [np.array(column) if column else np.zeros(0, np.int64) for column in columns]
    together = join_ids(arrays)
    values = list(itertools.chain(*columns))
    strings = any(isinstance(v, str) for v in values)
    assert together.tolist() == [str(v) if strings else v for v in values]
    whole = count_ids(together)
    counter = Counter()
    some = [count_ids(array) for array in arrays if len(array)]
    for part in some:
        counter.add(part)
    for found in (counter.total(), merge(some)):
        assert found.ids.tolist() == whole.ids.tolist() and found.counts.tolist() == whole.counts.tolist()
    assert sum(whole.counts) == len(values)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_buckets_hold_whole_users_up_to_their_size(counts, size):
    starts = bucket_starts(np.array(counts), size).tolist()
    assert starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] < len(counts)
    for first, last in itertools.pairwise([*starts, len(counts)]):
        assert sum(counts[first:last]) <= size or last == first + 1
        if last < len(counts):  # and no smaller than they must be
            assert sum(counts[first : last + 1]) > size


def test_rows_go_to_the_bucket_of_their_user():
    block = Behaviours(np.array([30, 10, 20, 30]), np.array(["b", "a", "b", "c"]), np.array([5, 6, 7, 4]))
    got = bucketed(block, np.array([10, 20, 30]), np.array(["a", "b", "c"]), np.array([0, 2]))
    assert {number: rows.tolist() for number, rows in got.items()} == {
        0: [(0, 0, 6), (1, 1, 7)],
        1: [(2, 1, 5), (2, 2, 4)],
    }
    none = Behaviours(*(np.zeros(0, np.int64),) * 3)
    assert bucketed(none, np.array([10, 20, 30]), np.array(["a"]), np.array([0, 2])) == {}
    assert sort_rows(got[1]).tolist() == [(2, 2, 4), (2, 1, 5)]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_what_is_kept_is_what_survives_in_memory(pairs, min_user, min_item):
    rows = np.array([(u, i, 0) for u, i in sorted(pairs)], ROW)
    users, items = (Counted(np.arange(n), np.bincount(rows[f], minlength=n)) for f, n in (("user", 5), ("item", 6)))
    cut = len(rows) // 2
    data = data_config("table", min_user_count=min_user, min_item_count=min_item)
    kept = keep([lambda: rows[:cut], lambda: rows[cut:]], users, items, data)
    left = rows[log_module.surviving_rows(rows["user"], rows["item"], min_user, min_item)]
    assert kept.of(rows).tolist() == left.tolist()
    np.testing.assert_array_equal(kept.user_counts, np.bincount(left["user"], minlength=5))


def test_an_interrupted_build_leaves_no_log(tmp_path):
    data = data_config("table", make_log(tmp_path / "raw"))
    parts = open_parts(data)

    def stop(_file, _rows):
        yield from itertools.islice(parts.read(parts.files[0], 5), 2)
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        build_out_of_core(dataclasses.replace(parts, read=stop), tmp_path / "out", data, SMALL, print)
    assert not (tmp_path / "out" / "log.json").exists()
