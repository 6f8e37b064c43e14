"""Prepared logs: what is written is what is read, what changed is noticed, and a run on it is the same run."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
from data_files import data_config, make_100k, make_kuairand

from t2diff_jax.data.log import DataError
from t2diff_jax.data.prepared import load_prepared, write_log
from t2diff_jax.data.sources import load_log


def prepared(folder, data):
    folder.mkdir()
    log = write_log(load_log(data), folder, data)
    return log, dataclasses.replace(data, source="prepared", path=str(folder))


@pytest.mark.parametrize("make", [make_100k, make_kuairand])
def test_round_trip(tmp_path, make):
    source = "movielens" if make is make_100k else "kuairand"
    data = data_config(source, make(tmp_path / "raw"))
    before = load_log(data)
    written, config = prepared(tmp_path / "out", data)
    read = load_log(config)
    for field in dataclasses.fields(before):
        values = [getattr(log, field.name) for log in (before, written, read)]
        assert (values[0] is None) == (values[1] is None) == (values[2] is None), field.name
        if values[0] is not None:
            np.testing.assert_array_equal(values[1], values[0])
            np.testing.assert_array_equal(values[2], values[0])
    assert before.digest() == written.digest() == read.digest()
    assert load_log(dataclasses.replace(config, categories=False, user_features=False)).categories is None


def test_a_changed_file_is_noticed(tmp_path):
    _, config = prepared(tmp_path / "out", data_config("synthetic"))
    path = tmp_path / "out" / "times.npy"
    times = np.load(path)
    times[-1] += 1
    np.save(path, times)
    with pytest.raises(DataError, match="out: its files are not as they were written; copy them again"):
        load_prepared(config)


def test_other_filters_are_refused(tmp_path):
    _, config = prepared(tmp_path / "out", data_config("synthetic"))
    with pytest.raises(DataError, match=r"prepared with data.min_user_count=1, and the configuration says 5"):
        load_prepared(dataclasses.replace(config, min_user_count=5))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "log.json").unlink(), r"log.json: no such file; set data.path"),
        (lambda f: (f / "log.json").write_text("{"), r"log.json: not readable"),
        (lambda f: (f / "log.json").write_text("[]"), r"log.json: not readable"),
        (lambda f: (f / "log.json").write_text('{"format": 1, "digest": ""}'), r"log.json: not readable \('filters'\)"),
        (lambda f: (f / "items.npy").write_bytes(b"x"), r"items.npy: not a readable column"),
        (lambda f: (f / "items.npy").unlink(), r"items.npy: not a readable column"),
        (lambda f: np.save(f / "items.npy", np.array([{}]), allow_pickle=True), r"items.npy: not a readable column"),
        (lambda f: np.save(f / "times.npy", np.zeros(3, np.int64)), r"field times: 3 times for"),
        (lambda f: _edit(f, format=9), r"log.json: of format 9, and this version reads 1"),
        (lambda f: _edit(f, colour="red"), r"log.json: does not describe a log .*colour"),
    ],
)
def test_what_is_no_prepared_log(tmp_path, spoil, message):
    _, config = prepared(tmp_path / "out", data_config("synthetic"))
    spoil(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        load_prepared(config)


def _edit(folder, **changes):
    path = folder / "log.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_milliseconds_are_not_taken_for_seconds(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"1,{i},{1700000000000 + i}\n" for i in range(4)))
    config = data_config("table", path, real_times=False)
    (tmp_path / "prepared").mkdir()
    write_log(load_log(config), tmp_path / "prepared", config)
    assert len(load_prepared(data_config("prepared", tmp_path / "prepared", real_times=False)).items) == 4
    with pytest.raises(DataError, match="prepared: times beyond the year 9999"):
        load_prepared(data_config("prepared", tmp_path / "prepared"))


def test_train_on_what_the_command_prepared(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "prepare.py", f"--config={tiny.CONFIG}", f"--out={out}"]
    done, again = (subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True) for _ in range(2))
    assert done.returncode == 0, done.stderr
    assert f"to train on it: --config.data.source=prepared --config.data.path={out}" in done.stdout
    assert again.returncode == 1 and "the folder is not empty" in again.stderr and "Traceback" not in again.stderr
    batches = [
        tiny.build(**keys).host_batch_at(5) for keys in ({}, {"data__source": "prepared", "data__path": str(out)})
    ]
    for name, values in batches[0].items():
        np.testing.assert_array_equal(values, batches[1][name])
