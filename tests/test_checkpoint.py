"""Checkpoints come back exactly or not at all."""

import gc
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import typing
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t2diff_jax import checkpoint
from t2diff_jax.checkpoint import Checkpointer, CheckpointError

ROOT = pathlib.Path(checkpoint.__file__).parents[1]
# Orbax abandons the reads that were under way when one of them fails; Python reports them when it collects them.
damaging = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class State(typing.NamedTuple):
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict | None
    stats: dict


def _shardings(devices: int) -> tuple[NamedSharding, NamedSharding]:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def _state(seed: int, devices: int = 1, rows: int = 64) -> State:
    over_devices, everywhere = _shardings(devices)
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, 16)).astype(np.float32)
    params = {
        "table": jax.device_put(table, over_devices),
        "half": jax.device_put(jnp.asarray(rng.normal(size=5), jnp.bfloat16), everywhere),
        "flags": jax.device_put(np.array([True, False, True]), everywhere),
    }
    optimiser = ({"mu": jax.device_put(table + 1, over_devices)}, ())
    special = jax.device_put(np.array([np.nan, np.inf, -0.0, 1e-42], np.float32), everywhere)
    return State(jax.device_put(np.int32(seed), everywhere), params, optimiser, None, {"special": special})


def _abstract(state: State) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _open(workdir, **changes) -> Checkpointer:
    return Checkpointer(workdir, **{"keep": 2, "select": "ndcg@10", "log_digest": "log", **changes})


def _assert_same(a: State, b: State) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape, np.asarray(x).tobytes()) == (y.dtype, y.shape, np.asarray(y).tobytes())


def _folder(workdir, step: int) -> pathlib.Path:
    return pathlib.Path(workdir) / "checkpoints" / str(step)


def _largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_a_save_asks_nobody_whether_the_processes_are_to_stop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step)))
    saver = _open(tmp_path)
    saver.save(1, _state(0), {})
    saver.close()
    assert not asked


def test_round_trip_is_exact_and_survives_donation(tmp_path):
    expected, state = _state(7), _state(7)
    with _open(tmp_path) as checkpointer:
        assert (checkpointer.latest_step(), checkpointer.best_step()) == (None, None)
        checkpointer.save(7, state, {})
        jax.jit(lambda s: jax.tree.map(lambda x: ~x if x.dtype == bool else x + 1, s), donate_argnums=0)(state)
        _assert_same(checkpointer.restore(7, _abstract(expected)), expected)
    with _open(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.steps() == [7]
        _assert_same(checkpointer.restore(7, _abstract(expected)), expected)


def test_momentum_of_two_kinds_comes_back(tmp_path):
    """Kernels have Muon's, the rest Adam's; each tree has holes where the other's parameters are."""
    parts = tiny.build((1, 1), model__name="sasrec", optim__kernels="muon")
    start = parts.initial_state()
    gradients = jax.tree.map(lambda p: p + 1, start.params)
    state = start._replace(opt_state=parts.tx.update(gradients, start.opt_state, start.params)[1])
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        tiny.assert_same_bits(checkpointer.restore(1, parts.abstract_state), state)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_restores_onto_another_device_count(tmp_path, devices):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1, devices=4), {})
        target = _abstract(_state(0, devices=devices))
        restored = checkpointer.restore(1, target)
    _assert_same(restored, _state(1))
    assert all(
        x.sharding == y.sharding for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True)
    )


def test_keeps_the_latest_and_the_best(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: None, 4: 0.3, 5: float("nan"), 6: 0.2}
    with _open(tmp_path) as checkpointer:
        for step, score in scores.items():
            checkpointer.save(step, _state(step), {"loss": 1.0} if score is None else {"ndcg@10": score, "loss": 1.0})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 5, 6]
    with _open(tmp_path) as checkpointer:  # what is best is read back from the disk
        assert (checkpointer.best_step(), checkpointer.latest_step()) == (2, 6)
        checkpointer.save(7, _state(7), {})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 6, 7]
        assert sorted(child.name for child in (tmp_path / "checkpoints").iterdir()) == ["2", "6", "7"]
        _assert_same(checkpointer.restore(2, _abstract(_state(2))), _state(2))
        checkpointer.save(8, _state(8), {"ndcg@10": 0.95})
        checkpointer.save(9, _state(9), {"ndcg@10": 0.95})
        checkpointer.save(10, _state(10), {"ndcg@10": 0.94})
        checkpointer.wait()
        assert checkpointer.best_step() == 9  # of equals the latest
        assert checkpointer.steps() == [9, 10]


def test_without_the_metric_there_is_no_best(tmp_path):
    with _open(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, _state(1), {"loss": 1.0})
        checkpointer.save(2, _state(2), {"loss": 1.0})
        assert (checkpointer.steps(), checkpointer.best_step()) == ([2], None)
    with _open(tmp_path, select="loss") as checkpointer:  # another metric may be chosen later
        assert checkpointer.best_step() == 2


def test_an_unknown_metric_neither_chooses_nor_removes(tmp_path):
    with _open(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, _state(1), {"ndcg@10": 0.9, "ndcg@5": 0.8})
        checkpointer.save(2, _state(2), {"ndcg@10": 0.1, "ndcg@5": 0.1})
        checkpointer.save(3, _state(3), {})
    with pytest.raises(CheckpointError, match=r"not known by recall@1: set eval\.select to one of ndcg@10, ndcg@5"):
        _open(tmp_path, keep=1, select="recall@1")
    with _open(tmp_path, select="recall@1", read_only=True) as checkpointer:
        assert checkpointer.steps() == [1, 3]
        _assert_same(checkpointer.restore(3, _abstract(_state(3))), _state(3))
        with pytest.raises(CheckpointError, match=r"not known by recall@1"):
            checkpointer.best_step()


def test_refuses_a_step_that_is_not_new_and_an_unknown_one(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(5, _state(5), {})
        for step in (4, 5):
            with pytest.raises(CheckpointError, match="holds step 5 already"):
                checkpointer.save(step, _state(5), {})
        with pytest.raises(CheckpointError, match="no checkpoint of step 3; present: 5"):
            checkpointer.restore(3, _abstract(_state(5)))
    with _open(tmp_path, read_only=True) as checkpointer, pytest.raises(ValueError, match="read_only"):
        checkpointer.save(6, _state(6), {})


def test_another_shape_dtype_or_structure_is_named(tmp_path):
    state = _state(1)
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        with pytest.raises(CheckpointError, match=r"params/table: float32\[64, 16\] in .*, float32\[72, 16\] wanted"):
            checkpointer.restore(1, _abstract(_state(1, rows=72)))
        cast = state._replace(params={**state.params, "half": state.params["half"].astype(jnp.float32)})
        with pytest.raises(CheckpointError, match=r"params/half: bfloat16\[5\] in .*, float32\[5\] wanted"):
            checkpointer.restore(1, _abstract(cast))
        with pytest.raises(CheckpointError, match=r"ema/table: absent in .*, float32\[64, 16\] wanted"):
            checkpointer.restore(1, _abstract(state._replace(ema=state.params)))
        fewer = state._replace(params={"table": state.params["table"]})
        with pytest.raises(CheckpointError, match=r"params/half: bfloat16\[5\] in the checkpoint, absent wanted"):
            checkpointer.restore(1, _abstract(fewer))
        with pytest.raises(ValueError, match=r"step: expected .* with a sharding"):
            checkpointer.restore(1, jax.eval_shape(lambda: state))


def test_another_log_is_refused(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1), {})
    with (
        _open(tmp_path, log_digest="other") as checkpointer,
        pytest.raises(CheckpointError, match="log there, other now"),
    ):
        checkpointer.restore(1, _abstract(_state(1)))


@damaging
def test_a_flipped_bit_is_never_restored(tmp_path):
    expected, rng = _state(1, rows=512), random.Random(0)
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, expected, {})
        checkpointer.wait()
        largest = _largest_file(_folder(tmp_path, 1))
        files = [largest] * 20 + [file for file in _folder(tmp_path, 1).rglob("*") if file.is_file()]
        refused = 0
        for i, file in enumerate(files):
            sound = file.read_bytes()
            bad = bytearray(sound)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            try:
                _assert_same(checkpointer.restore(1, _abstract(expected)), expected)
            except CheckpointError as error:
                refused += i < 20
                assert str(_folder(tmp_path, 1)) in str(error)
            file.write_bytes(sound)
        assert refused >= 12  # the rest hit bytes that nobody reads
        _assert_same(checkpointer.restore(1, _abstract(expected)), expected)
    gc.collect()


@damaging
@pytest.mark.parametrize("how", ["truncated", "empty", "missing"])
def test_truncated_and_missing_files_are_explained(tmp_path, how):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1, rows=512), {})
    file = _largest_file(_folder(tmp_path, 1))
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.unlink()
    if how != "missing":
        file.write_bytes(half if how == "truncated" else b"")
    with _open(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match=r"step 1 in .*cannot be read.*delete that folder") as caught:
            checkpointer.restore(1, _abstract(_state(1, rows=512)))
        assert len(str(caught.value)) < 800
    gc.collect()


_SPOILT = """
import gc, pathlib, sys
import jax
from t2diff_jax.checkpoint import Checkpointer, CheckpointError
workdir, args = pathlib.Path(sys.argv[1]), dict(keep=2, select="ndcg@10", log_digest="log")
state = {f"array_{i}": jax.random.normal(jax.random.key(i), (64, 64)) for i in range(40)}
with Checkpointer(workdir, **args) as checkpointer:
    checkpointer.save(1, state, {})
for file in (workdir / "checkpoints" / "1" / "state").rglob("d/*"):
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 3, 2 * len(data) // 3):
        data[i] ^= 0x10
    file.write_bytes(data)
for _ in range(3):
    with Checkpointer(workdir, **args) as checkpointer:
        try:
            checkpointer.restore(1, state)
        except CheckpointError as error:
            print(error)
    gc.collect()
"""


def test_a_restore_that_succeeds_silences_nothing(tmp_path):
    hook, filters = sys.unraisablehook, warnings.filters[:]
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1), {})
        checkpointer.restore(1, _abstract(_state(1)))
    assert sys.unraisablehook is hook and warnings.filters == filters
    assert checkpoint._is_awaited not in logging.getLogger("asyncio").filters


def test_of_many_unreadable_arrays_only_the_first_is_told(tmp_path):
    args = [sys.executable, "-c", _SPOILT, str(tmp_path)]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("cannot be read") == len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


@damaging
def test_a_damaged_manifest_is_named_and_its_checkpoint_kept(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1), {"ndcg@10": 0.25})
        checkpointer.save(2, _state(2), {"ndcg@10": 0.125})
    file = _folder(tmp_path, 1) / "manifest" / "metadata"
    file.write_text(file.read_text().replace("0.25", "0.05"))
    with _open(tmp_path, keep=1) as checkpointer:
        _assert_same(checkpointer.restore(2, _abstract(_state(2))), _state(2))
        for call in (checkpointer.best_step, lambda: checkpointer.restore(1, _abstract(_state(1)))):
            with pytest.raises(CheckpointError, match=r"manifest of the checkpoint of step 1 in .*delete that folder"):
                call()
        checkpointer.save(3, _state(3), {})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2, 3]  # unreadable, best, latest
    gc.collect()


@damaging
def test_a_folder_under_another_number_is_refused(tmp_path):
    with _open(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1), {})
    shutil.copytree(_folder(tmp_path, 1), _folder(tmp_path, 4))
    with _open(tmp_path) as checkpointer, pytest.raises(CheckpointError, match=r"step 4 .*it is not what was saved"):
        checkpointer.restore(4, _abstract(_state(1)))
    gc.collect()


_KILLED = """
import os, pathlib, signal, sys
import jax, jax.numpy as jnp
from t2diff_jax.checkpoint import Checkpointer
state = {"table": jax.random.normal(jax.random.key(0), (1 << 22,))}
checkpointer = Checkpointer(sys.argv[1], keep=2, select="ndcg@10", log_digest="log")
checkpointer.save(1, {"table": state["table"][:9]}, {})
checkpointer.wait()
checkpointer.save(2, state, {})
while len(list(pathlib.Path(sys.argv[1], "checkpoints").iterdir())) < 2:
    pass  # it is saved in the background
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_during_a_save_leaves_a_clean_restart(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], env=env, capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # the second one is torn
    (tmp_path / "checkpoints" / "removed" / "7").mkdir(parents=True)
    before = tiny.snapshot(tmp_path)
    with _open(tmp_path, read_only=True) as reader:
        assert reader.latest_step() == 1
    assert tiny.snapshot(tmp_path) == before and (tmp_path / "checkpoints" / "removed" / "7").is_dir()
    everywhere = _shardings(1)[1]
    with _open(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 1
        restored = checkpointer.restore(1, {"table": jax.ShapeDtypeStruct((9,), jnp.float32, sharding=everywhere)})
        checkpointer.save(3, restored, {})
    assert sorted(child.name for child in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


_KILLED_REMOVING = """
import os, pathlib, shutil, signal, sys
import jax.numpy as jnp
from t2diff_jax.checkpoint import Checkpointer

def unlink_one_and_die(folder, *args, **kwargs):
    files = sorted(f for f in pathlib.Path(folder).rglob("*") if f.is_file())
    if files:
        files[len(files) // 2].unlink()
        os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = unlink_one_and_die
checkpointer = Checkpointer(sys.argv[1], keep=1, select="ndcg@10", log_digest="log")
for step in (1, 2, 3):
    checkpointer.save(step, {"x": jnp.arange(step)}, {})
checkpointer.wait()
"""


def test_a_kill_during_a_removal_leaves_whole_checkpoints(tmp_path):
    """A step that retention drops is gone as a whole or there as a whole: its files are first moved out of sight."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", _KILLED_REMOVING, str(tmp_path)], env=env, capture_output=True, timeout=300
    )
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "checkpoints" / "removed" / "1").is_dir()
    with _open(tmp_path) as checkpointer:
        assert 1 not in checkpointer.steps() and checkpointer.latest_step() is not None
        assert checkpointer.best_step() is None  # every manifest could be read
        assert not (tmp_path / "checkpoints" / "removed").exists()
