"""A user's own log in CSV, TSV and Parquet."""

import datetime
import decimal
import math

import numpy as np
import polars as pl
import pytest
from data_files import data_config, write

from t2diff_jax.data.log import DataError
from t2diff_jax.data.parts import load_parts
from t2diff_jax.data.sources import load_log, text
from t2diff_jax.data.sources.features import encode_attributes, encode_categories
from t2diff_jax.data.sources.table import table_parts

HEADER = "user_id,item_id,timestamp"


def test_csv_with_other_columns_in_another_order(tmp_path):
    path = write(tmp_path / "shop.csv", "when,note,sku,who", '20,"a, b",x,u2', "10,,y,u1", "5,,x,u2")
    names = {"table__user": "who", "table__item": "sku", "table__time": "when"}
    log = load_log(data_config("table", path, **names))
    assert (log.name, log.user_ids.tolist(), log.item_ids.tolist()) == ("shop", ["u1", "u2"], ["", "x", "y"])
    assert log.items.tolist() == [2, 1, 1] and log.times.tolist() == [10, 5, 20]
    assert log.categories is None and log.titles is None and log.user_features is None


def test_every_format_gives_the_same_log(tmp_path):
    rows = [(1, 30, 7), (2, 10, 5), (1, 10, 6)]
    csv = write(tmp_path / "log.csv", HEADER, *(f"{u},{i},{t}" for u, i, t in rows))
    tsv = write(tmp_path / "log.tsv", HEADER.replace(",", "\t"), *(f"{u}\t{i}\t{t}" for u, i, t in rows))
    frame = pl.DataFrame(rows, schema=HEADER.split(","), orient="row")
    frame.write_parquet(tmp_path / "log.parquet")
    digests = {load_log(data_config("table", p)).digest() for p in (csv, tsv, tmp_path / "log.parquet")}
    assert len(digests) == 1


def save(path, **columns):
    """Writes a Parquet log of two rows, in which some columns are others than 1, 2."""
    path.parent.mkdir(exist_ok=True)
    pl.DataFrame({name: [1, 2] for name in HEADER.split(",")} | columns).write_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_path_is_no_pattern(tmp_path, kind):
    paths = [tmp_path / "y[24]" / f"{name}.{kind}" for name in ("log1", "log[1]")]
    for number, path in enumerate(paths):
        if kind == "csv":
            write(path, HEADER, f"{number},1,1")
        else:
            save(path, user_id=[number, number])
    assert [load_log(data_config("table", path)).user_ids.tolist() for path in paths] == [[0], [1]]
    assert load_log(data_config("table", tmp_path / "y[24]")).user_ids.tolist() == [0, 1]


def test_ids_that_look_like_numbers_but_are_not(tmp_path):
    log = load_log(data_config("table", write(tmp_path / "a.csv", HEADER, "1,007,1", "1,7,2")))
    assert log.item_ids.tolist() == ["", "007", "7"]
    assert log.user_ids.tolist() == [1]


def test_floats_that_are_integers_are_integer_ids(tmp_path):
    save(tmp_path / "raw" / "a.parquet", user_id=[1.0, -2.0], item_id=pl.Series([1.0, 2.0**24 - 1], dtype=pl.Float32))
    save(tmp_path / "raw" / "b.parquet", user_id=[1, 3])
    log = load_log(data_config("table", tmp_path / "raw"))
    assert log.user_ids.tolist() == [-2, 1, 3] and log.item_ids.tolist() == [-1, 1, 2, 2**24 - 1]
    save(tmp_path / "raw" / "b.parquet", user_id=["1", "x"])
    log = load_log(data_config("table", tmp_path / "raw"))
    assert log.user_ids.tolist() == ["-2", "1", "x"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.0, 1.5], "row 2, field user_id: 1.5 where a whole number below 2.53 is needed; convert the column to int"),
        ([float("nan"), 1.0], "row 1, field user_id: nan where"),
        ([1.0, 2.0**53], "row 2, field user_id: 9007199254740992.0 where"),
        ([1.0, None], "row 2, field user_id: no value where an id"),
        (pl.Series([1, 2**24], dtype=pl.Float32), "row 2, field user_id: 16777216.0 where a whole number below 2.24"),
    ],
)
def test_floats_that_are_no_ids(tmp_path, ids, message):
    with pytest.raises(DataError, match=message):
        load_log(data_config("table", save(tmp_path / "a.parquet", user_id=ids)))


def test_floats_in_a_feature_file(tmp_path):
    save(tmp_path / "items.parquet", item_id=[2.0, 1.0], t=["Two", "One"])
    for ids, titles in (("1,2", ["", "One", "Two"]), ("x,2", ["", "Two", ""])):
        path = write(tmp_path / "a.csv", HEADER, *(f"1,{i},1" for i in ids.split(",")))
        log = load_log(data_config("table", path, table__item_file="items.parquet", table__title="t"))
        assert log.titles.tolist() == titles


def test_fractions_of_seconds_are_cut_off_and_large_times_kept(tmp_path):
    log = load_log(data_config("table", write(tmp_path / "a.csv", HEADER, "1,1,1.9", "1,2,-0.5")))
    assert log.times.tolist() == [-1, 1]
    log = load_log(data_config("table", write(tmp_path / "b.csv", HEADER, "1,1,9007199254740993"), real_times=False))
    assert log.times.tolist() == [9007199254740993]


def test_a_fraction_beside_a_large_time_costs_it_no_digit(tmp_path):
    path = write(tmp_path / "a.csv", HEADER, "1,1,1.9", "1,2,9007199254740993", "1,3,1e3")
    assert load_log(data_config("table", path, real_times=False)).times.tolist() == [1, 1000, 9007199254740993]


ISO = ["2024-02-29", "1969-12-31 23:59:58.9", "2024-05-31T23:59:59", "2024-06-01T01:59:59.5+02:00"]
ISO += ["2024-05-31T21:29:59-0230", "2024-05-31T23:59:59Z", "0001-01-01", "2024-05-31 12:30", "2024-05-31 23:59:59+02"]


def test_dates_and_times_of_iso_8601(tmp_path):
    path = write(tmp_path / "a.csv", HEADER, *(f"1,{i},{time}" for i, time in enumerate(ISO)), "1,20,12.5", "1,21,-3")
    log = load_log(data_config("table", path))
    times = [datetime.datetime.fromisoformat(time) for time in ISO]
    utc = [time if time.tzinfo else time.replace(tzinfo=datetime.UTC) for time in times]
    expected = dict(enumerate(math.floor(time.timestamp()) for time in utc)) | {20: 12, 21: -3}
    assert dict(zip(log.item_ids[log.items].tolist(), log.times.tolist(), strict=True)) == expected
    for wrong in (
        "2024-13-01",
        "2024-05-31T23:59:59[+]25:00",
        "2024-05-31T23:59:59[+]02:60",
        "2024-05-31[+]٠٢:٠٠",
        "2024-01-01T25:00:00",
        "2024-01-01T00",
        "01/02/2024",
        "2024-01-01T00:00:00 UTC",
    ):
        path = write(tmp_path / "b.csv", HEADER, "1,1,2024-01-01", f"1,2,{wrong.replace('[+]', '+')}")
        with pytest.raises(DataError, match=rf"b.csv, line 3, field timestamp: '{wrong}' where a finite number or"):
            load_log(data_config("table", path))


@pytest.mark.parametrize("kind", [pl.Datetime("ms"), pl.Datetime("ns", "Europe/Rome"), pl.Date])
def test_dates_and_times_of_parquet(tmp_path, kind):
    hours = pl.Series([datetime.datetime(1969, 12, 31, 12), datetime.datetime(2024, 7, 1, 12)])
    if zone := getattr(kind, "time_zone", None):
        times = hours.dt.replace_time_zone(zone).cast(kind)
    else:
        times = hours.cast(kind)
    log = load_log(data_config("table", save(tmp_path / "a.parquet", timestamp=times)))
    seconds = {"Datetime": [-43200, 1719835200 - 7200 * bool(zone)], "Date": [-86400, 1719792000]}
    expected = seconds["Date" if kind == pl.Date else "Datetime"]
    assert log.times.tolist() == ([-46800, expected[1]] if zone else expected)


def test_milliseconds_are_not_taken_for_seconds(tmp_path):
    path = write(tmp_path / "a.csv", HEADER, "1,1,1", "1,2,1700000000000")
    with pytest.raises(DataError, match=r"a.csv, line 3, field timestamp: '17.*' where a unix time in seconds .*1000"):
        load_log(data_config("table", path))
    assert load_log(data_config("table", path, real_times=False)).times.tolist() == [1, 1700000000000]
    path = write(tmp_path / "b.csv", HEADER, "1,1,20240531", "1,2,20240601")
    with pytest.raises(DataError, match=r"b.csv, line 2, .*'20240531' where .* no date of eight digits, .*2024-05-31"):
        load_log(data_config("table", path))
    assert load_log(data_config("table", path, real_times=False)).times.tolist() == [20240531, 20240601]
    path = write(tmp_path / "b.csv", HEADER, "1,1,253402300799")  # the last second of 9999
    assert load_log(data_config("table", path)).times.tolist() == [253402300799]


def test_what_is_no_part_of_the_log_in_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "log"
    (folder / "_spark").mkdir(parents=True)
    for name in ("a.csv", "_b.csv", "_SUCCESS", ".a.csv.crc"):
        write(folder / name, HEADER, "1,1,1")
    write(folder / "people.csv", "user_id,city", "1,Rome")
    (folder / "meta").mkdir()
    write(folder / "meta" / "items.csv", "item_id,genre", "1,a")
    np.save(folder / "vectors.npy", np.eye(2, dtype=np.float32))
    aside = dict(table__user_file="people.csv", table__user_columns=("city",), content=str(folder / "vectors.npy"))
    aside |= dict(table__item_file="meta/items.csv", table__category="genre")
    assert len(load_log(data_config("table", folder, **aside)).items) == 2
    monkeypatch.chdir(tmp_path)
    aside["content"] = "log/vectors.npy"  # of the working directory, as numpy reads it
    for path in ("log", folder):
        assert len(load_log(data_config("table", path, **aside)).items) == 2
    for name in ("c.csv.gz", "notes.txt", "2024"):
        (folder / name).mkdir() if name == "2024" else write(folder / name, HEADER, "2,2,2")
        with pytest.raises(DataError, match=rf"log: {name} is no file .csv, .tsv, .parquet; move it out .* unpack it"):
            load_log(data_config("table", folder, **aside))
        (folder / name).rename(folder / f"_{name}")


@pytest.mark.parametrize("time", ["1e30", "-1e30", "99999999999999999999", "9223372036854775807", str(2**62), "-9e18"])
def test_times_of_which_differences_would_overflow(tmp_path, time):
    path = write(tmp_path / "a.csv", HEADER, "1,1,1", f"1,2,{time}")
    with pytest.raises(DataError, match=rf"a.csv, line 3, field timestamp: '{time}' where a time below 2.62 is needed"):
        load_log(data_config("table", path))


def test_feature_files_beside_the_log(tmp_path):
    path = write(tmp_path / "a.csv", HEADER, "1,10,1", "1,20,2", "2,30,1")
    write(tmp_path / "items.csv", "item_id,name,genre", "10,Ten,b|a", "99,Other,c", "20,,")
    write(tmp_path / "users.tsv", "user_id\tcity\tage", "1\tRome\t", "3\tOslo\t4")
    keys = {
        "item_file": "items.csv",
        "category": "genre",
        "title": "name",
        "user_file": "users.tsv",
        "user_columns": ("city", "age"),
    }
    log = load_log(data_config("table", path, **{f"table__{k}": v for k, v in keys.items()}))
    assert log.titles.tolist() == ["", "Ten", "", ""]
    assert log.category_names == ("a", "b", "c")
    np.testing.assert_array_equal(log.categories, [[0, 0], [2, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(log.user_features, [[2, 0], [0, 0]])
    assert log.user_feature_sizes == (3, 2)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_features_in_the_log_come_from_the_first_row(tmp_path, block):
    path = write(tmp_path / "a.csv", HEADER + ",genre,city", "1,10,1,a,Rome", "1,10,2,b,Oslo", "2,20,2,b,Oslo")
    data = data_config("table", path, table__category="genre", table__user_columns=("city",))
    log = load_parts(table_parts(data, block), data)
    np.testing.assert_array_equal(log.categories, [[0], [1], [2]])
    np.testing.assert_array_equal(log.user_features, [[2], [1]])


def test_lists_in_parquet(tmp_path):
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1.5], "genre": [["b", "a"]]})
    frame.write_parquet(tmp_path / "a.parquet")
    log = load_log(data_config("table", tmp_path / "a.parquet", table__category="genre"))
    assert log.category_names == ("a", "b") and log.categories.tolist() == [[0, 0], [2, 1]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['1,1,1,"a', 'b""', 'c"', "1,1,then,x"], "a.csv, line 6, field timestamp: 'then' where"),
        (['1,1,1,"a', 'b"', '1,1,1,"c, d, e', 'f,g"', "1,1,1,1,1"], "a.csv, line 7: 5 fields where 4 are expected"),
        (['1,1,1,"a', '\udce9"'], "a.csv, line 4: not UTF-8; convert"),
    ],
)
def test_lines_are_those_of_the_file_also_after_quoted_line_ends(tmp_path, lines, message):
    content = "\n".join([f'{HEADER},"no', 'te"', *lines, ""]).encode(errors="surrogateescape")
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_log(data_config("table", tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER], "empty log"),
        ([], "a.csv, line 1: empty file"),
        (["user_id;item_id;timestamp", "1;1;1"], "a.csv, line 1: no column 'user_id'.*the separator must be ','"),
        (
            ["user_id,item,timestamp", "1,1,1"],
            "a.csv, line 1: no column 'item_id' among 'user_id', 'item', 'timestamp'",
        ),
        (
            [HEADER, "1,1,1", "1,1,2024-02-30"],
            "a.csv, line 3, field timestamp: '2024-02-30' where a finite number or an ISO 8601 date is .*convert times",
        ),
        (
            [HEADER, "1,1,1", "1,,2"],
            "a.csv, line 3, field item_id: no value where an id is needed; fill it in or delete",
        ),
        ([HEADER, "1,1,1", '1,"",2'], "a.csv, line 3, field item_id: no value where an id is needed; fill it in"),
        (
            [HEADER, "a,x,1", "a\0,y,1"],
            r"a.csv, line 3, field user_id: 'a.x00' where text without NUL is needed; delete",
        ),
        ([HEADER, "a,x,1", "a,x\0y,1"], "a.csv, line 3, field item_id: .* without NUL"),
        (
            [HEADER, "1,a,1", f"1,{'b' * 257},2"],
            "a.csv, line 3, field item_id: 'b{79} where an id of at most 256 characters is needed; shorten or number",
        ),
        ([HEADER, "1,1,1", "1,1,inf"], "a.csv, line 3, field timestamp: 'inf' where a finite number"),
        ([HEADER, "1,1,1", "1,1"], "a.csv, line 3, field timestamp: no value"),
        ([HEADER + ",x", "1,1,1,1", "1,1,1,1,1"], "a.csv, line 3: 5 fields where 4 are expected"),
        ([HEADER, "1,1,1", '2,2,"2', "3,3,3"], "a.csv, line 3: a quote that is not closed; close it"),
    ],
)
def test_bad_csv(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        load_log(data_config("table", write(tmp_path / "a.csv", *lines)))


def test_bad_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"user_id,item_id")
    with pytest.raises(DataError, match=r"a.parquet: not a readable Parquet file"):
        load_log(data_config("table", path))
    pl.DataFrame({"user_id": [1], "item_id": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"a.parquet: no column 'timestamp' among 'user_id', 'item_id'; rename"):
        load_log(data_config("table", path))
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, None], "timestamp": [1, 2]})
    frame.write_parquet(path)
    with pytest.raises(DataError, match=r"a.parquet, row 2, field item_id: no value where an id"):
        load_log(data_config("table", path))


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        (
            "user_id",
            [b"\xff", b"a"],
            r"a.parquet: cannot be read after row 0 \(invalid utf8\); write.*as UTF-8 strings",
        ),
        ("user_id", [{"a": 1}, {"a": 2}], "field user_id: values of type Struct.* cannot be read; convert the column"),
        ("item_id", [["a"], ["b"]], "field item_id: values of type List"),
        ("item_id", [decimal.Decimal("1.00")] * 2, "field item_id: values of type Decimal"),
        (
            "timestamp",
            [datetime.timedelta(1)] * 2,
            "field timestamp: values of type Duration.*convert times to unix sec",
        ),
        ("timestamp", [[1], [2]], "field timestamp: values of type List"),
        ("genre", [datetime.timedelta(1)] * 2, "field genre: values of type Duration"),
        ("genre", [[["a"]], [["b"]]], "field genre: values of type List.List"),
    ],
)
def test_types_of_parquet_that_cannot_be_read(tmp_path, field, values, message):
    path = save(tmp_path / "a.parquet", **{"genre": ["a", "b"], field: values})
    with pytest.raises(DataError, match=message):
        load_log(data_config("table", path, table__category="genre"))


def test_other_types_of_parquet(tmp_path):
    genres = pl.Series([["b", "a"], ["c", None]], dtype=pl.Array(pl.String, 2))
    names, whole = pl.Series(["u", "v"], dtype=pl.Categorical), pl.Series([1, 2], dtype=pl.Decimal(38, 0))
    path = save(tmp_path / "a.parquet", user_id=names, item_id=whole, genre=genres, day=[datetime.date(2020, 1, 1)] * 2)
    log = load_log(data_config("table", path, table__category="genre", table__title="day"))
    assert log.user_ids.tolist() == ["u", "v"] and log.item_ids.tolist() == [-1, 1, 2]
    assert log.categories.tolist() == [[0, 0], [2, 1], [3, 0]] and log.titles.tolist() == ["", *["2020-01-01"] * 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER.encode() + b"\r1,1,1\r", "a.csv, line 1: ends in a carriage return alone; convert the line ends"),
        (b'"' + b"x" * (1 << 18), "a.csv, line 1: field larger than field limit.*; check quotes and separators"),
    ],
)
def test_first_lines_that_cannot_be_split(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_log(data_config("table", tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"item_file": "none.csv", "title": "t"}, "none.csv: no such file or folder; correct data.table.item_file"),
        ({"item_file": "items.csv"}, "items.csv: no column of it is used; set data.table.category or data.table.title"),
        ({"user_file": "items.csv"}, "items.csv: no column of it is used; set data.table.user_columns"),
        (
            {"item_file": "items.csv", "title": "t"},
            "items.csv, line 3, field item_id: 'x9' where a whole number.*same ids",
        ),
        ({"item_file": "nul.csv", "title": "t"}, "nul.csv, line 2, field t: 'a.x00b' where text without NUL"),
        ({"category": "genre"}, "a.csv, line 1: no column 'genre'"),
    ],
)
def test_bad_features(tmp_path, keys, message):
    path = write(tmp_path / "a.csv", HEADER, "1,10,1")
    write(tmp_path / "items.csv", "item_id,t", "10,a", "x9,b")
    write(tmp_path / "nul.csv", "item_id,t", "10,a\0b")
    with pytest.raises(DataError, match=message):
        load_log(data_config("table", path, **{f"table__{k}": v for k, v in keys.items()}))


def test_unknown_or_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"a.xlsx: unknown kind of file '.xlsx'; give a .csv, .tsv or .parquet"):
        load_log(data_config("table", write(tmp_path / "a.xlsx", HEADER)))
    with pytest.raises(DataError, match=r"a.csv: no such file or folder; set data.path"):
        load_log(data_config("table", tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"data.path is empty; set it"):
        load_log(data_config("table"))


def test_switches_and_content(tmp_path):
    path = write(tmp_path / "a.csv", HEADER + ",genre,city", "1,2,1,a,Rome", "1,1,2,b,Rome")
    np.save(tmp_path / "c.npy", np.eye(3, dtype=np.float32))
    keys = {"table__category": "genre", "table__user_columns": ("city",), "content": str(tmp_path / "c.npy")}
    log = load_log(data_config("table", path, **keys))
    np.testing.assert_array_equal(log.content, [[0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert log.categories is not None and log.user_features is not None
    log = load_log(data_config("table", path, categories=False, user_features=False, **keys))
    assert (log.categories, log.category_names, log.user_features, log.user_feature_names) == (None, (), None, ())


def test_polars_missing_is_said_clearly(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(ImportError, match=r"needs polars; install it with: pip install polars"):
        text.import_polars()


def test_encode_categories():
    ids, names = encode_categories(np.array(["b|a|b", "", "c| a"]), "|", names=None, ignore=("c",))
    assert names == ("a", "b") and ids.tolist() == [[2, 1], [0, 0], [1, 0]]
    with pytest.raises(DataError, match=r"category 'b' is none of a; check the separator"):
        encode_categories(np.array(["b"]), "|", names=("a",), ignore=())


def test_encode_attributes():
    ids, names, sizes = encode_attributes({"x": np.array(["", "b", "a"]), "y": np.array([5, 5, 1])})
    assert ids.tolist() == [[0, 2], [2, 2], [1, 1]] and names == ("x", "y") and sizes == (3, 3)
