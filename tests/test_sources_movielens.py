"""MovieLens in its three formats, and what is said of files that cannot be read."""

import numpy as np
import pytest
from data_files import data_config, make_1m, make_100k, make_movielens_csv, write

from t2diff_jax.data.log import DataError
from t2diff_jax.data.sources import load_log


def test_1m(tmp_path):
    log = load_log(data_config("movielens", make_1m(tmp_path / "ml-1m")))
    assert (log.name, log.n_users, log.n_items) == ("ml-1m", 2, 3)
    assert log.item_ids[log.items].tolist() == [10, 20, 30, 10, 30]  # user 1's tie at 200 in file order
    assert log.titles.tolist() == ["", "Heat: Part 1 (1995)", "Misérables, Les (1995)", "Up (2009)"]
    assert log.category_names == ("Action", "Animation", "Crime", "Drama", "Western")
    np.testing.assert_array_equal(log.categories, [[0, 0], [1, 3], [4, 0], [2, 0]])
    np.testing.assert_array_equal(log.user_features, [[1, 1, 1], [2, 2, 2]])
    assert (log.user_feature_names, log.user_feature_sizes) == (("gender", "age", "occupation"), (3, 3, 3))


def test_100k(tmp_path):
    log = load_log(data_config("movielens", make_100k(tmp_path)))
    assert log.item_ids[log.items].tolist() == [20, 10, 10]
    assert log.titles.tolist() == ["", "Misérables, Les (1995)", "unknown"]
    np.testing.assert_array_equal(log.categories, [[0], [8], [0]])
    assert log.category_names[7] == "Drama" and len(log.category_names) == 18
    np.testing.assert_array_equal(log.user_features, [[2, 2, 2], [1, 1, 1]])  # ages 24 and 17 in the groups of 1M


def test_100k_with_a_line_separated_by_blanks(tmp_path):
    make_100k(tmp_path)
    write(tmp_path / "u.data", "1 10 3\t100", "2\t10\t4\t50", "1\t20\t5\t90")
    log = load_log(data_config("movielens", tmp_path))
    assert log.item_ids[log.items].tolist() == [20, 10, 10]


def test_csv(tmp_path):
    log = load_log(data_config("movielens", make_movielens_csv(tmp_path)))
    assert log.item_ids[log.items].tolist() == [20, 10]
    assert log.titles.tolist() == ["", "Misérables, Les (1995)", "Up (2009)"]
    np.testing.assert_array_equal(log.categories, [[0, 0], [1, 2], [0, 0]])
    assert log.category_names == ("Drama", "War") and log.user_features is None


def test_windows_line_ends(tmp_path):
    folder = make_1m(tmp_path)
    before = load_log(data_config("movielens", folder))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_log(data_config("movielens", folder)).digest() == before.digest()


def test_ratings_below_the_minimum_are_no_behaviours(tmp_path):
    log = load_log(data_config("movielens", make_1m(tmp_path), movielens__min_rating=4.0))
    assert log.item_ids[log.items].tolist() == [20, 30, 30]
    with pytest.raises(DataError, match=r"field Rating: no rating reaches 6.0; lower data.movielens.min_rating"):
        load_log(data_config("movielens", tmp_path, movielens__min_rating=6.0))


def test_users_are_needed_only_for_their_features(tmp_path):
    (make_1m(tmp_path) / "users.dat").unlink()
    with pytest.raises(DataError, match=r"users.dat: no such file or folder; copy it from the archive"):
        load_log(data_config("movielens", tmp_path))
    assert load_log(data_config("movielens", tmp_path, user_features=False)).n_users == 2


@pytest.mark.parametrize(
    ("make", "file"),
    [(make_1m, "movies.dat"), (make_100k, "u.item"), (make_100k, "u.user"), (make_movielens_csv, "movies.csv")],
)
def test_missing_file(tmp_path, make, file):
    (make(tmp_path) / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: no such file or folder; copy it from the archive"):
        load_log(data_config("movielens", tmp_path))


def test_no_release_found(tmp_path):
    with pytest.raises(DataError, match=r"none of ratings.dat, u.data, ratings.csv in it; unpack"):
        load_log(data_config("movielens", tmp_path))
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; set data.path"):
        load_log(data_config("movielens", tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data.path is empty; set it"):
        load_log(data_config("movielens"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["1,10,3,100"],
            "ratings.dat, line 1: expected the 4 fields.*found 1 in '1,10,3,100'; the separator must be '::'",
        ),
        (["1::10::3"], "ratings.dat, line 1: expected the 4 fields.*found 3.*convert the file"),
        ([], "ratings.dat, line 1: empty file"),
        (
            ["1::10::3::1", "1::x7::3::1"],
            "ratings.dat, line 2, field MovieID: 'x7' where a whole number is needed; correct",
        ),
        (["1::10::3::1", "u::7::3::1"], "ratings.dat, line 2, field UserID: 'u' where a whole number"),
        (
            ["1::10::3::1", "", "1::7::3::2"],
            "ratings.dat, line 2, field Rating: no value where a finite number.*delete",
        ),
        (["1::10::3::1", "1::7::good::2"], "ratings.dat, line 2, field Rating: 'good' where a finite number"),
        (["1::10::3::1", "1::7::nan::2"], "ratings.dat, line 2, field Rating: 'nan' where a finite number"),
        (["1::10::3::1", "1::7::3::2001-01-01"], "ratings.dat, line 2, field Timestamp: '2001.*give unix seconds"),
        (["1::10::3::1", "1::7::3"], "ratings.dat, line 2, field Timestamp: no value"),
        (["1::10::3::1", "1::7::3::1::9"], "ratings.dat, line 2: 5 fields where 4 are expected; correct or delete"),
        (["1::10::3::1", "1:8:7::3::1"], "ratings.dat, line 2: '8' inside the separator '::'; correct"),
    ],
)
def test_bad_ratings(tmp_path, lines, message):
    write(make_1m(tmp_path) / "ratings.dat", *lines)
    with pytest.raises(DataError, match=message):
        load_log(data_config("movielens", tmp_path))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["userId;movieId;rating;timestamp"], "ratings.csv, line 1: no column 'userId'.*separator must be ','"),
        (
            ["userId,movieId,timestamp", "1,1,1"],
            "ratings.csv, line 1: no column 'rating' among 'userId', 'movieId'.*rename",
        ),
        (["userId,movieId,rating,timestamp"], "empty log"),
        (["userId,movieId,rating,timestamp", "1,2,3,4", "1,2,3"], "ratings.csv, line 3, field timestamp: no value"),
        (["userId,movieId,rating,timestamp", "1,2,3,4", "1,2,3,4,5"], "ratings.csv, line 3: 5 fields where 4"),
    ],
)
def test_bad_csv(tmp_path, lines, message):
    write(make_movielens_csv(tmp_path) / "ratings.csv", *lines)
    with pytest.raises(DataError, match=message):
        load_log(data_config("movielens", tmp_path))


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("movies.dat", ["10::Heat::Action", "20|Up|Drama"], "movies.dat, line 2: expected the 3 fields.*must be '::'"),
        ("movies.dat", ["ten::Heat::Action"], "movies.dat, line 1, field movie id: 'ten' where a whole number"),
        ("movies.dat", ["10::Heat::Action", "20::Up\0::Drama"], "movies.dat, line 2: NUL character; delete it"),
        ("movies.dat", [f"{10**19}::Heat::Action"], "movies.dat, line 1, field movie id: '10{19}' where"),
        ("users.dat", ["1::F::young::1::1"], "users.dat, line 1, field Age: 'young' where a whole number"),
        ("users.dat", ["1::F::1::1::1", "1::F::1::1::1"], "user id 1 is listed twice in the user table"),
    ],
)
def test_bad_features(tmp_path, file, lines, message):
    write(make_1m(tmp_path) / file, *lines)
    with pytest.raises(DataError, match=message):
        load_log(data_config("movielens", tmp_path))


def test_ratings_that_are_not_utf8(tmp_path):
    (make_1m(tmp_path) / "ratings.dat").write_bytes(b"1::10::3::1\n1::\xe9::3::1\n")
    with pytest.raises(DataError, match=r"ratings.dat, line 2: not UTF-8; convert"):
        load_log(data_config("movielens", tmp_path))
