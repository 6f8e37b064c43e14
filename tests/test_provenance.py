"""Where a run comes from."""

import subprocess

import pytest

from t2diff_jax import provenance as module
from t2diff_jax.provenance import provenance


def test_what_is_told(monkeypatch):
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b=2")
    told = provenance(["/somewhere/train.py", "--config", "configs/a b.py"])
    assert told["command"] == "python train.py --config 'configs/a b.py'"
    assert told["environment"] == "JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS='--xla_a=1 --xla_b=2'"
    assert told["devices"] >= 1 and told["cores"] >= 1 and told["processes"] == 1 and told["device"]


def test_the_commit_says_whether_files_differ_from_it(tmp_path):
    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *args], check=True, capture_output=True, text=True).stdout

    file, installed = tmp_path / "file", tmp_path / "venv" / "file"
    assert module._commit(file) is None
    git("init", "-q")
    assert module._commit(file) is None
    file.write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "--short", "HEAD").strip()
    (tmp_path / "untracked").write_text("")
    assert module._commit(file) == head
    file.write_text("two")
    assert module._commit(file) == head + "+"
    installed.parent.mkdir()
    installed.write_text("")
    assert module._commit(installed) is None  # what git does not track is not of that commit


def test_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        subprocess.run(["git"], check=True)
    assert module._commit(tmp_path / "file") is None
