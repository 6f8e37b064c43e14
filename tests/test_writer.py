"""What a run writes: whole lines, exact resumption, readable text."""

import builtins
import errno
import json
import os
import pathlib
import threading

import jax
import numpy as np
import pytest

from t2diff_jax.writer import MetricsWriter, metrics_table, progress_line, write_arrays, write_json


def _lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_on_disk_at_once(tmp_path):
    with MetricsWriter(tmp_path / "run", resume_step=-1) as writer:
        writer.write(3, "train", {"loss": np.float32(0.5), "users": 7})
        assert _lines(tmp_path / "run") == [{"step": 3, "split": "train", "loss": 0.5, "users": 7.0}]
        writer.write(4, "validation", {"ndcg@10": 0.25})
        assert _lines(tmp_path / "run")[1] == {"step": 4, "split": "validation", "ndcg@10": 0.25}
    writer.close()


def test_values_that_are_not_finite_become_null(tmp_path):
    with MetricsWriter(tmp_path, resume_step=-1) as writer:
        writer.write(1, "train", {"loss": float("nan"), "grad_norm": float("-inf"), "scale": 1.0})
    assert _lines(tmp_path) == [{"step": 1, "split": "train", "loss": None, "grad_norm": None, "scale": 1.0}]


@pytest.mark.parametrize("name", ["step", "split"])
def test_metrics_do_not_hide_the_fields(tmp_path, name):
    with MetricsWriter(tmp_path, resume_step=-1) as writer, pytest.raises(ValueError, match="may be named"):
        writer.write(1, "train", {name: 1.0})


def _run(workdir, steps, *, resume_step):
    with MetricsWriter(workdir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": 1 / (step + 1)})


@pytest.mark.parametrize("torn", ["", '{"step": 5, "spl', '{"step": 2, "split": "train", "loss": 0.1}', "\x00\x00"])
def test_an_interrupted_run_writes_the_file_of_an_uninterrupted_one(tmp_path, torn):
    _run(tmp_path / "whole", range(9), resume_step=-1)
    _run(tmp_path / "cut", range(5), resume_step=-1)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write(torn)
    _run(tmp_path / "cut", range(3, 9), resume_step=2)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    _run(tmp_path / "cut", range(9), resume_step=-1)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboardX")
    _run(tmp_path, range(3), resume_step=-1)
    files = list((tmp_path / "tensorboard").glob("events*"))
    assert len(files) == 1
    assert b"train/loss" in files[0].read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_does_not_wait_for_tensorboard_once_that_has_ended(tmp_path, monkeypatch):
    """Its thread ends where the disk is full; the lines of metrics.jsonl then tell of it, or go on."""
    from tensorboardX.record_writer import RecordWriter

    def full(*_):
        raise OSError("no space left")

    writer = MetricsWriter(tmp_path, resume_step=-1)
    monkeypatch.setattr(RecordWriter, "write", full)
    writing = threading.Thread(target=lambda: [writer.write(i, "train", {"loss": 1.0}) for i in range(50)], daemon=True)
    writing.start()
    writing.join(timeout=30)
    assert not writing.is_alive() and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50


def test_without_tensorboardx_one_line_is_printed(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    _run(tmp_path, range(2), resume_step=-1)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "TensorBoard output is off" in out
    assert len(_lines(tmp_path)) == 2


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _run(tmp_path / "run", range(2), resume_step=-1)
    assert not (tmp_path / "run").exists()


def test_write_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": np.float32(0.5), "b": (1, float("nan")), "c": np.arange(2), 3: None})
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [1, None], "c": [0, 1], "3": None}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "ranks.npz"
    for value in (1.5, 2.5):
        write_arrays(path, ranks=np.full((2, 3), value), users=np.arange(3))
        with np.load(path, allow_pickle=False) as found:
            assert found["ranks"].tolist() == [[value] * 3] * 2 and found["users"].tolist() == [0, 1, 2]
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)  # a kill just before
    with pytest.raises(ZeroDivisionError):
        write_arrays(path, ranks=np.zeros(1))
    assert path.read_bytes() == before and [child.name for child in tmp_path.iterdir()] == ["ranks.npz"]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*result.json'"):
        write_json(tmp_path / "result.json", {"a": 1})


def test_progress_line():
    line = progress_line(1200, 3000, {"loss": 5.4321, "grad_norm": 1.01}, 12345.4, 200.2)
    assert line == "step  1200/3000  loss 5.432  grad_norm 1.01  12,345 examples/s  ETA 3 min 20 s"
    assert progress_line(1, 10, {}, float("nan"), float("inf")) == "step   1/10  ? examples/s  ETA ?"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (3700, "1 h 1 min"), (2 * 86400 + 3600, "2 d 1 h"), (-1, "0 s")],
)
def test_eta(seconds, text):
    assert progress_line(1, 2, {}, 1.0, float(seconds)).endswith(f"ETA {text}")


def test_metrics_table():
    rows = {
        "t2diff": {"recall@2": (0.12345, 0.001), "recall@10": (0.5, 0.01), "ndcg@10": (0.25, None)},
        "popularity": {"recall@2": (0.01, None), "recall@10": (0.02, None)},
    }
    assert metrics_table(rows).splitlines() == [
        "metric              t2diff  popularity",
        "--------------------------------------",
        "recall@2   0.1235 ± 0.0010      0.0100",
        "recall@10  0.5000 ± 0.0100      0.0200",
        "",
        "ndcg@10    0.2500                    -",
    ]


def test_metrics_table_stays_within_the_terminal():
    rows = {f"system number {i}": {"recall@10": (0.5, 0.1), "mrr@10": (0.1, None)} for i in range(12)}
    text = metrics_table(rows)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("recall@10") == 3
    assert all(name in text for name in rows)
    assert metrics_table({}).startswith("metric")
