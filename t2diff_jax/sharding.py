"""The mesh and the placement rules. Nothing else builds a Mesh.

Axes: "data" splits the batch, "model" splits the rows of item tables (and of whatever follows them: moments, averages).
Everything else is replicated. The mathematics is written for one device; the compiler inserts the collectives.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t2diff_jax.config import MeshConfig
from t2diff_jax.config_values import ConfigError
from t2diff_jax.types import Catalogue

# What has one row per item, by name: parameters, and how often items are drawn.
_ROW_PER_ITEM = ("item_table", "signature_table", "augmented_item_table", "draw_gap", "draw_step")
_UNDER_WAY = 8  # results that lie on the devices before the first of them is fetched


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The (data, model) mesh over these devices (None: all of all processes).

    Raises:
      ConfigError: the devices cannot be laid out so.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.model if config.data == -1 else config.data
    if data * config.model != len(devices):
        raise ConfigError(
            f"config.mesh: {config.data} x {config.model} (data x model) does not lay out {len(devices)} devices; "
            "data = -1 takes what model leaves"
        )
    return Mesh(lay_out(data, config.model, devices), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def lay_out(data: int, model: int, devices: Sequence[Any]) -> np.ndarray:
    """Devices [data, model], neighbours by the wires. Of several TPU slices each holds whole rows.

    So what goes along `model` stays within a slice, and what passes between slices belongs to the batch.

    Raises:
      ConfigError: the slices cannot share out the data axis.
    """
    # GPUs have the attribute too, one for each host; TPUs only where there are several slices.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if data % slices:
        raise ConfigError(
            f"config.mesh.data: {data} does not divide by {slices} slices, between which item tables are not split; "
            "make config.mesh.model smaller"
        )
    # A slice of 4 x 4 x 4 has no axis of 8: then one of them is split.
    if slices == 1:
        return mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    within = (data // slices, model)
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1), devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """First axis (item rows) over "model"."""
    return NamedSharding(mesh, PartitionSpec("model"))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Shardings of a train state (arrays or shapes): item tables by rows, also inside optimiser states and averages.

    Raises:
      ConfigError: the rows of a table do not divide by the model axis.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        if not has_item_rows(path, leaf):
            return replicated(mesh)
        check_rows(mesh, leaf.shape[0])
        return row_sharding(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def has_item_rows(path: tuple, leaf: Any) -> bool:
    """Whether a leaf of a train state, at this path, has one row per item: a table, or what follows its rows."""
    names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
    return any(name in _ROW_PER_ITEM for name in names) and leaf.ndim > 0


def check_rows(mesh: Mesh, rows: int) -> None:
    """Raises `ConfigError` unless the rows of an item table divide by the model axis."""
    if rows % mesh.shape["model"]:
        raise ConfigError(
            f"config.mesh.model: {rows} table rows do not divide by {mesh.shape['model']} devices; "
            "set config.model.row_multiple to a multiple of the model axis"
        )


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises `ConfigError`, which names the `key`, unless a global batch divides by the data axis."""
    if batch_size % mesh.shape["data"]:
        raise ConfigError(
            f"{key}: {batch_size} does not divide by the {mesh.shape['data']} devices of the data axis; set it to a "
            "multiple, or give config.mesh.model more of the devices"
        )


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process has to make, ascending int [rows].

    They need not be contiguous: on a TPU slice the mesh follows the wires, a host its place in the grid.
    """
    index = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[span] for (span,) in index.values()]))


def put_batch(mesh: Mesh, rows: dict[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """A global batch on the devices from each process's own rows, those of `process_rows`."""

    def put(value: np.ndarray) -> jax.Array:
        shape = batch_size, *value.shape[1:]
        return jax.make_array_from_process_local_data(batch_sharding(mesh), value, shape)

    return {name: put(value) for name, value in rows.items()}


def to_host(mesh: Mesh, value: jax.Array) -> np.ndarray:
    """The whole of an array, on every process; its rows may lie on devices of others."""
    if value.is_fully_addressable:
        return np.asarray(value)  # each device gives its part: none has to hold the whole
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated(mesh))(value))


def fetch_each(results: Iterable[Any]) -> list[Any]:
    """Replicated results of independent programs as numpy; asking `results` for the next one starts its program.

    A few are under way at a time, so that the devices need not hold all of them. On CPU with several processes each
    ends before the next starts: programs with collectives that are under way at once can there wait for each other
    forever.
    """
    one_by_one = jax.process_count() > 1 and jax.default_backend() == "cpu"
    under_way, fetched = collections.deque(), []
    for result in results:
        under_way.append(result)
        if one_by_one or len(under_way) > _UNDER_WAY:
            fetched.append(jax.device_get(under_way.popleft()))
    return fetched + jax.device_get(list(under_way))


def put_catalogue(mesh: Mesh, catalogue: Catalogue) -> Catalogue:
    """The catalogue's arrays on the devices, by rows.

    Raises:
      ConfigError: the rows do not divide by the model axis.
    """
    check_rows(mesh, catalogue.n_rows)
    sharding = row_sharding(mesh)

    def put(value: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, catalogue)
