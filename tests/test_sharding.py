"""The mesh and the placement rules: item tables by rows over "model", batches over "data", the rest everywhere."""

import dataclasses
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType, PartitionSpec

from t2diff_jax.config import MeshConfig
from t2diff_jax.config_values import ConfigError
from t2diff_jax.sharding import (
    batch_sharding,
    check_batch,
    fetch_each,
    lay_out,
    make_mesh,
    process_rows,
    put_batch,
    put_catalogue,
    replicated,
    row_sharding,
    state_shardings,
    to_host,
)
from t2diff_jax.train_state import TrainState
from t2diff_jax.types import Catalogue

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
ROWS, EVERYWHERE = PartitionSpec("model"), PartitionSpec()


def mesh(data=-1, model=1):
    return make_mesh(MeshConfig(data, model))


def state(rows=16):
    params = {"items": {"item_table": jnp.zeros((rows, 3)), "category_table": jnp.zeros((5, 2))}, "bias": jnp.zeros(3)}
    stats = {"item_table": jnp.zeros(())}  # a scalar has no rows, whatever its name
    return TrainState(jnp.int32(0), params, optax.adam(1e-3).init(params), params, stats, None)


@pytest.mark.parametrize(
    ("config", "shape"), [((-1, 1), (8, 1)), ((-1, 4), (2, 4)), ((2, 4), (2, 4)), ((1, 8), (1, 8))]
)
def test_the_mesh_has_all_devices(config, shape):
    made = mesh(*config)
    assert made.axis_names == ("data", "model") and made.devices.shape == shape
    assert set(made.devices.flat) == set(jax.devices())
    assert made.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize("config", [(3, 2), (8, 2), (-1, 3), (-1, 16)])
def test_a_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(ConfigError, match=r"config.mesh: .*does not lay out 8 devices; data = -1 takes"):
        mesh(*config)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a layout asks of one; alone a slice has no number."""

    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


@dataclasses.dataclass(frozen=True)
class OfSlice(Device):
    """One of several slices."""

    slice_index: int = 0


def slices(count):
    places = [(n, x, y) for n in range(count) for y in range(2) for x in range(2)]
    return [OfSlice(4 * n + 2 * y + x, (x, y, 0), slice_index=n) for n, x, y in places]


def test_one_slice_follows_the_wires():
    wires = [Device(2 * y + x, (x, y, 0)) for y in range(2) for x in range(4)]
    made = lay_out(4, 2, wires)
    assert made.shape == (4, 2) and set(made.flat) == set(wires)
    assert all(abs(a.coords[0] - b.coords[0]) + abs(a.coords[1] - b.coords[1]) == 1 for a, b in made)


@pytest.mark.parametrize("model", [1, 2, 4])
def test_tables_stay_within_a_slice(model):
    """Rows of the mesh lie in one slice each, and all devices have a place."""
    made = lay_out(12 // model, model, slices(3))
    assert made.shape == (12 // model, model) and set(made.flat) == set(slices(3))
    assert all(len({device.slice_index for device in row}) == 1 for row in made)
    assert [row[0].slice_index for row in made] == sorted(row[0].slice_index for row in made)


def test_tables_between_slices_are_refused_but_between_hosts_with_gpus_laid_out():
    """Of GPUs each host is told to be a slice, and few hosts may have to share a table."""
    with pytest.raises(ConfigError, match=r"config.mesh.data: 1 does not divide by 2 slices, .*mesh.model smaller"):
        lay_out(1, 8, slices(2))
    gpus = [dataclasses.replace(device, platform="gpu", device_kind="NVIDIA H200") for device in slices(2)]
    assert lay_out(1, 8, gpus).tolist() == [gpus]


def test_item_tables_and_what_follows_them_go_by_rows():
    made = mesh(model=4)
    placed = state_shardings(made, state())
    by_rows = [placed.params, placed.ema, placed.opt_state[0].mu, placed.opt_state[0].nu]
    for tree in by_rows:
        assert tree["items"]["item_table"].spec == ROWS
        assert tree["items"]["category_table"].spec == tree["bias"].spec == EVERYWHERE
    specs = [leaf.spec for leaf in jax.tree.leaves(placed)]
    assert specs.count(ROWS) == len(by_rows) and specs.count(EVERYWHERE) == len(specs) - len(by_rows)
    assert all(leaf.mesh == made for leaf in jax.tree.leaves(placed))
    shapes = jax.eval_shape(state)  # shapes will do
    assert jax.tree.leaves(state_shardings(made, shapes)) == jax.tree.leaves(placed)


def test_rows_that_do_not_divide_are_refused_with_a_remedy():
    message = r"config.mesh.model: 18 table rows do not divide by 4 devices; set config.model.row_multiple"
    with pytest.raises(ConfigError, match=message):
        state_shardings(mesh(model=4), state(rows=18))
    with pytest.raises(ConfigError, match=message):
        put_catalogue(mesh(model=4), Catalogue(np.zeros(18, np.float32), None, None, 17))


def test_one_process_makes_all_rows():
    np.testing.assert_array_equal(process_rows(mesh(), 16), np.arange(16))
    np.testing.assert_array_equal(process_rows(mesh(model=8), 3), np.arange(3))


def test_a_batch_that_does_not_divide_is_refused_by_the_name_of_its_key():
    check_batch(mesh(), 16, "config.train.batch_size")
    with pytest.raises(ConfigError, match=r"config.cold.batch_size: 12 does not divide by the 8 devices of the data"):
        check_batch(mesh(), 12, "config.cold.batch_size")


def test_a_batch_is_split_over_data():
    made = mesh(model=2)
    rows = {"history": np.arange(24, dtype=np.int32).reshape(8, 3), "weight": np.ones(8, np.float32)}
    batch = put_batch(made, rows, 8)
    tiny.assert_same_bits(batch, rows)
    for value in batch.values():
        assert value.sharding.is_equivalent_to(batch_sharding(made), value.ndim)
        assert {shard.data.shape[0] for shard in value.addressable_shards} == {2}


def test_a_catalogue_is_split_over_model():
    made = mesh(model=4)
    catalogue = Catalogue(np.arange(16, dtype=np.float32), np.arange(32, dtype=np.int32).reshape(16, 2), None, 13)
    placed = put_catalogue(made, catalogue)
    assert placed.n_items == 13 and placed.content is None
    tiny.assert_same_bits(placed, catalogue)
    assert placed.categories.sharding.is_equivalent_to(row_sharding(made), 2)
    assert {shard.data.shape for shard in placed.categories.addressable_shards} == {(4, 2)}
    np.testing.assert_array_equal(to_host(made, placed.counts), catalogue.counts)
    assert replicated(made).is_fully_replicated


def test_a_build_settles_what_depends_on_the_log_and_the_devices():
    """Many items are drawn from; targets are scored in chunks on a single CPU alone, which the run does not record."""
    drawn = tiny.build(auto__full_cpu=10, auto__negatives=16)
    assert (drawn.config.loss.negatives, drawn.config.optim.lazy_rows) == (16, True)
    whole = tiny.build(auto__full_cpu=1000, loss__chunk=20)
    assert (whole.config.loss.negatives, whole.config.optim.lazy_rows) == (0, False)
    assert (whole.config.loss.chunk, whole.retriever.loss_config.chunk) == (20, 0)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"mesh__model": 8, "model__row_multiple": 1}, "config.mesh.model"),
        ({"mesh__model": 3}, "config.mesh"),
    ],
)
def test_a_run_that_cannot_be_laid_out_is_refused_before_it_starts(changes, key):
    with pytest.raises(ConfigError, match=key):
        tiny.build(**changes)


def test_few_results_wait_on_the_devices():
    """All come in their order; of twenty never more than nine are there at once."""
    waiting, most = [], 0

    def results():
        nonlocal most
        for number in range(20):
            result = jnp.full(3, number)
            waiting.append(weakref.ref(result))
            yield {"a": result}
            del result
            most = max(most, sum(one() is not None for one in waiting))

    fetched = fetch_each(results())
    assert [one["a"].tolist() for one in fetched] == [[number] * 3 for number in range(20)]
    assert all(isinstance(one["a"], np.ndarray) for one in fetched) and 1 < most <= 9
    assert fetch_each(iter(())) == []
