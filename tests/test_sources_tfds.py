"""Datasets of tensorflow-datasets: our own, and prepared MovieLens ratings."""

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from data_files import data_config

from t2diff_jax.config import SyntheticConfig
from t2diff_jax.data.log import DataError, build_log
from t2diff_jax.data.sources import load_log
from t2diff_jax.data.sources.synthetic import make_log

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

LOG = SyntheticConfig(seed=0, n_users=50, n_items=40, categories=4, mean_length=12)
RATINGS = [(b"1", b"30", 30, 5.0), (b"2", b"10", 5, 4.0), (b"1", b"10", 10, 3.0), (b"1", b"20", 20, 1.0)]


class Movielens(tfds.core.GeneratorBasedBuilder):
    """A few ratings with the fields of the published dataset."""

    VERSION = tfds.core.Version("0.1.1")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="tiny-ratings")]
    code_path = None

    def _info(self):
        genres = tfds.features.ClassLabel(names=["Action", "Drama", "(no genres listed)"])
        features = {
            "user_id": np.str_,
            "movie_id": np.str_,
            "timestamp": np.int64,
            "user_rating": np.float32,
            "movie_title": np.str_,
            "movie_genres": tfds.features.Sequence(genres),
            "user_gender": np.bool_,
            "bucketized_user_age": np.float32,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        genres = {b"10": [1, 0], b"20": [2], b"30": [1]}
        for key, (user, movie, time, rating) in enumerate(RATINGS):
            yield (
                key,
                {
                    "user_id": user,
                    "movie_id": movie,
                    "timestamp": time,
                    "user_rating": rating,
                    "movie_title": "Misérables".encode() + movie,
                    "movie_genres": genres[movie],
                    "user_gender": user == b"1",
                    "bucketized_user_age": 25.0,
                },
            )


def prepare_ratings(folder, file_format="array_record"):
    skip = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    builder = Movielens(config="tiny-ratings", data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare(download_config=skip)
    return folder


def write(log, folder):
    from t2diff_jax.data.sources.tfds_builder import write_log

    return write_log(log, str(folder))


def test_round_trip(tmp_path):
    log = make_log(LOG)
    write(log, tmp_path)
    again = load_log(data_config("tfds", tmp_path))
    assert again.name == "synthetic" and again.digest() == log.digest()
    with pytest.raises(FileExistsError, match=r"already there; delete it or choose another data_dir"):
        write(log, tmp_path)


def test_a_path_is_no_pattern(tmp_path):
    log = make_log(LOG)
    write(log, tmp_path / "d[1]")
    assert load_log(data_config("tfds", tmp_path / "d[1]")).digest() == log.digest()


def test_round_trip_of_string_ids_without_features(tmp_path):
    columns = (np.array(["é", "a", "é"]), np.array(["x", "x", "y"]), np.array([3, 2, 1]))
    log = build_log("toy", *columns, min_user_count=1, min_item_count=1, item_features=None, user_features=None)
    write(log, tmp_path)
    again = load_log(data_config("tfds", tmp_path))
    assert again.digest() == log.digest() and again.titles is None and again.user_features is None


def test_filters_apply_to_a_written_log(tmp_path):
    log = make_log(LOG)
    write(log, tmp_path)
    again = load_log(data_config("tfds", tmp_path, min_user_count=12))
    assert again.digest() == make_log(LOG, min_user_count=12).digest() != log.digest()


def test_prepared_ratings(tmp_path):
    config = data_config(
        "tfds", prepare_ratings(tmp_path), tfds__name="movielens/tiny-ratings", movielens__min_rating=2.0
    )
    log = load_log(config)
    assert log.item_ids.tolist() == [-1, 10, 30] and log.user_ids.tolist() == [1, 2]
    assert log.item_ids[log.items].tolist() == [10, 30, 10] and log.times.tolist() == [10, 30, 5]
    assert log.titles.tolist() == ["", "Misérables10", "Misérables30"]
    assert log.category_names == ("Action", "Drama")
    np.testing.assert_array_equal(log.categories, [[0, 0], [2, 1], [2, 0]])
    assert log.user_feature_names == ("gender", "age")
    np.testing.assert_array_equal(log.user_features, [[2, 1], [1, 1]])


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"data.path is empty; set it to the data_dir"):
        load_log(data_config("tfds"))
    with pytest.raises(DataError, match=r"'imagenet' is not known; use t2diff_log or movielens/<release>-ratings"):
        load_log(data_config("tfds", tmp_path, tfds__name="imagenet"))
    with pytest.raises(DataError, match=r"t2diff_log: no prepared dataset in it; prepare t2diff_log there"):
        load_log(data_config("tfds", tmp_path))
    folder = write(make_log(LOG), tmp_path)
    (folder / "catalogue.npz").unlink()
    with pytest.raises(DataError, match=r"catalogue.npz: no such file or folder; write the log again"):
        load_log(data_config("tfds", tmp_path))


def test_tfrecord_files_are_refused(tmp_path):
    folder = prepare_ratings(tmp_path) / "movielens" / "tiny-ratings" / "0.1.1"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"stored as tfrecord, which has no random access.*array_record"):
        load_log(data_config("tfds", tmp_path, tfds__name="movielens/tiny-ratings"))


def test_tensorflow_is_never_imported(tmp_path):
    write(make_log(LOG), tmp_path)
    code = (
        "import sys; from data_files import data_config; from t2diff_jax.data.sources import load_log;"
        "assert 'tensorflow_datasets' not in sys.modules;"
        f"assert load_log(data_config('tfds', {str(tmp_path)!r})).n_users == 50;"
        "import t2diff_jax.data.sources.tfds_builder; assert 'tensorflow' not in sys.modules"
    )
    # The paths of this process: the project and the tests may lie on them without being installed.
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], check=True, timeout=120)
