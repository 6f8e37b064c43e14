"""KuaiRand from a made log in its schema."""

import numpy as np
import pytest
from data_files import KUAIRAND_COLUMNS, data_config, kuairand_row, make_kuairand, write

from t2diff_jax.data.log import DataError
from t2diff_jax.data.sources import load_log

LOG = "log_standard_4_08_to_4_21_27k_part1.csv"


def test_clicks_of_the_tab_from_all_parts(tmp_path):
    log = load_log(data_config("kuairand", make_kuairand(tmp_path)))
    assert (log.name, log.user_ids.tolist(), log.item_ids.tolist()) == ("kuairand-27k", [0, 3], [-1, 0, 5])
    assert log.item_ids[log.items].tolist() == [0, 5, 0]
    assert log.times.tolist() == [3, 9, 2]
    assert log.category_names == ("12", "8")
    np.testing.assert_array_equal(log.categories, [[0], [1], [2]])
    assert log.user_feature_names == ("user_active_degree", "onehot_feat0", "onehot_feat1")
    np.testing.assert_array_equal(log.user_features, [[1, 2, 0], [2, 1, 1]])
    assert log.user_feature_sizes == (3, 3, 2) and log.titles is None


def test_a_path_is_no_pattern(tmp_path):
    assert load_log(data_config("kuairand", make_kuairand(tmp_path / "k[1]"))).n_users == 2


def test_filters_can_be_switched_off(tmp_path):
    folder = make_kuairand(tmp_path / "data", "pure").parent
    log = load_log(data_config("kuairand", folder, kuairand__clicks_only=False, kuairand__tab=-1))
    assert log.item_ids[log.items].tolist() == [0, 7, 6, 5, 0]
    assert log.name == "kuairand-pure"
    np.testing.assert_array_equal(log.categories[1:], [[1], [2], [3], [0]])  # video 7 has no tag


@pytest.mark.parametrize(
    ("file", "switch"), [("video_features_basic_27k.csv", "categories"), ("user_features_27k.csv", "user_features")]
)
def test_feature_files_are_needed_unless_switched_off(tmp_path, file, switch):
    (make_kuairand(tmp_path) / file).unlink()
    with pytest.raises(
        DataError, match=rf"{file}: no such file or folder; unpack it there or set data.{switch} to False"
    ):
        load_log(data_config("kuairand", tmp_path))
    assert load_log(data_config("kuairand", tmp_path, **{switch: False})).n_users == 2


def test_missing_logs(tmp_path):
    with pytest.raises(DataError, match=r"no file log_random_4_22_to_5_08_\*.csv; unpack it there or correct"):
        load_log(data_config("kuairand", make_kuairand(tmp_path), kuairand__logs=("random_4_22_to_5_08",)))
    with pytest.raises(DataError, match=r"data.path is empty"):
        load_log(data_config("kuairand"))


def test_two_releases_in_one_folder(tmp_path):
    make_kuairand(make_kuairand(tmp_path), "1k")
    with pytest.raises(DataError, match=r"releases 1k, 27k side by side; keep one"):
        load_log(data_config("kuairand", tmp_path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (kuairand_row("u", 1, 1), "part1.csv, line 3, field user_id: 'u' where a whole number is needed; correct"),
        (kuairand_row(1, "v", 1), "part1.csv, line 3, field video_id: 'v'"),
        (kuairand_row(1, 1, "noon"), "part1.csv, line 3, field time_ms: 'noon'.*give unix milliseconds"),
        (kuairand_row(1, 1, 1, click="yes"), "part1.csv, line 3, field is_click: 'yes'"),
        (kuairand_row(1, 1, 1, click=2), "part1.csv, line 3, field is_click: 2 where 0 or 1 is needed"),
        (kuairand_row(1, 1, 1, click=""), "part1.csv, line 3, field is_click: no value"),
        (kuairand_row(1, 1, 1, tab="x"), "part1.csv, line 3, field tab: 'x'"),
        (kuairand_row(1, 1, 1) + ",9", "part1.csv, line 3: 20 fields where 19 are expected"),
    ],
)
def test_bad_rows_are_reported_and_not_filtered_away(tmp_path, row, message):
    write(make_kuairand(tmp_path) / LOG, KUAIRAND_COLUMNS, kuairand_row(0, 5, 1), row)
    with pytest.raises(DataError, match=message):
        load_log(data_config("kuairand", tmp_path))


def test_missing_column_and_nothing_left(tmp_path):
    make_kuairand(tmp_path)
    with pytest.raises(DataError, match=r"empty log after the row filters.*is_click and tab; change data.kuairand"):
        load_log(data_config("kuairand", tmp_path, kuairand__tab=9))
    write(tmp_path / LOG, "user_id,video_id,time_ms,is_click", "1,1,1,1")
    with pytest.raises(DataError, match=r"part1.csv, line 1: no column 'tab'"):
        load_log(data_config("kuairand", tmp_path))
