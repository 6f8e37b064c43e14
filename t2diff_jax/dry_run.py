"""A dry run: the real programs of a run, compiled for devices that need not be there, and what they take.

No log is read and nothing is computed. A TPU topology is compiled for by the compiler of libtpu (extra `[tpu]`), which
needs no TPU; GPUs of a known kind by that of jax's plugin (extra `[cuda]`), from a description (`gpu_kinds`); the
devices that are there by their own. For `cuda` programs are lowered, which shows that they can be, and no more.
"""

import dataclasses
import math
import os
import time
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t2diff_jax.config import Config
from t2diff_jax.config_values import ConfigError, as_computed, settled
from t2diff_jax.data.catalogue import table_rows
from t2diff_jax.experiment import Experiment
from t2diff_jax.gpu_kinds import COMPILER_OPTIONS, GIB, KINDS, described_devices, is_described
from t2diff_jax.models import build_retriever
from t2diff_jax.optim import make_optimizer
from t2diff_jax.program_cost import Collective, Memory, collectives_of, copies_of, memory_of, product_flops
from t2diff_jax.sharding import check_batch, check_rows, has_item_rows, make_mesh, row_sharding
from t2diff_jax.train_state import TrainState
from t2diff_jax.types import Catalogue, Sizes

_VALIDATING = ("item table", "ranks")  # programs of an evaluation that run in the middle of training
# Memory of one device, by the name that its compiler gives the kind.
_CAPACITY = {
    "TPU v4": 32 * GIB,
    "TPU v5 lite": 16 * GIB,
    "TPU v5": 95 * GIB,
    "TPU v5p": 95 * GIB,
    "TPU v6 lite": 32 * GIB,
    "TPU7x": 192 * GIB,
    **{kind.name: kind.memory for kind in KINDS.values()},
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What one program takes on each device.

    Attributes:
      flops: of its matrix products, on all devices together.
      seconds: to compile it.
      memory, collectives: None where there is no compiled program.
      refusal: why the compiler made none: what the program needs is more than the device has.
      beside: bytes of the train state that it does not read and that lie on each device while training validates.
      copies: of a device's whole share of an item table, in each training step.
    """

    name: str
    flops: int
    seconds: float
    memory: Memory | None
    collectives: list[Collective] | None
    refusal: str
    beside: int = 0
    copies: int = 0


def dry_run(config: Config, topology: str, slices: int = 1) -> Iterator[str]:
    """The report for `topology`, line by line, as programs are done.

    topology: "local", the devices that are here; "cuda", lowered for as many; GPUs of a kind, "h100:8" or "h100:4x8"
      (four hosts of eight); else what libtpu knows: "v5e:16x16".
    slices: of TPUs: so many of them, which talk over the data-centre network.

    Raises:
      ConfigError: there is no such topology, or the configuration does not fit on it.
    """
    devices = find_devices(topology, slices)
    mesh, kind = make_mesh(config.mesh, devices), "CUDA" if topology == "cuda" else devices[0].device_kind
    where = topology if slices == 1 else f"{slices} slices of {topology}"
    yield (
        f"{config.model.name}, {config.dry_run.n_items:,} items, on {where}: {len(devices)} devices ({kind}), "
        f"data {mesh.shape['data']} x model {mesh.shape['model']}"
    )
    programs = []
    options = COMPILER_OPTIONS if is_described(topology) else None
    for program in compile_programs(config, mesh, only_lower=topology == "cuda", options=options):
        programs.append(program)
        yield from ("", *described(program, len(devices)))
    yield f"\n{verdict(programs, _CAPACITY.get(kind))}"


def verdict(programs: Sequence[Program], capacity: int | None) -> str:
    """Whether they fit into `capacity` bytes of a device; None: not known."""
    refused = [program.name for program in programs if program.refusal]
    most = max((program.memory.total + program.beside for program in programs if program.memory), default=None)
    if refused:
        return f"DOES NOT FIT: {', '.join(refused)}"
    if most is None:
        return "all programs can be lowered; memory and collectives are the compiler's to say, where the devices are"
    if capacity is None:
        return f"most memory per device: {_size(most)}; how much the device has is not known here"
    fits = "fits" if most <= capacity else "DOES NOT FIT"
    return f"most memory per device: {_size(most)} of {_size(capacity)}: {fits}"


def find_devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices of a topology, whether they are here or not. Raises `ConfigError` where there is no such one."""
    here, gpus = topology in ("local", "cuda"), is_described(topology)
    if slices > 1 and (here or gpus):
        raise ConfigError(f"--slices={slices}: only TPUs have slices, and --topology={topology} has none")
    if here:
        return jax.devices()
    try:
        return described_devices(topology) if gpus else _tpus(topology, slices)
    except Exception as error:  # whatever the plugin raises
        remedy = (
            "to compile for GPUs that are not here: pip install -e '.[cuda]'"
            if gpus
            else "give local, cuda, GPUs as h100:8 or h200:4x8 (hosts x GPUs; pip install -e '.[cuda]') or a slice of "
            "TPUs as v5e:4x4 (pip install -e '.[tpu]')"
        )
        raise ConfigError(f"--topology={topology}: {str(error).splitlines()[0]}; {remedy}") from error


def _tpus(topology: str, slices: int) -> list[Any]:
    from jax.experimental import topologies  # costs half a second

    # Without them libtpu asks the network which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs: others may compile at the same time
    several = {"num_slices": slices} if slices > 1 else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **several).devices)


def compile_programs(
    config: Config, mesh: Mesh, *, only_lower: bool, options: dict[str, Any] | None = None
) -> Iterator[Program]:
    """The training step and the programs of an evaluation, each as it is done."""
    device = "gpu" if only_lower else mesh.devices.flat[0].platform
    config = as_computed(settled(config, config.dry_run.n_items, device), device, mesh.size)
    parts = declared_experiment(config, mesh)
    state, batch = parts.abstract_state, parts.training_forms()
    step = parts.compile_step(), (state, parts.catalogue, batch)
    yield _compiled("training step", *step, only_lower, options, tables=table_shapes(state))
    evaluator, seen = parts.evaluator(), config.dry_run.seen if config.eval.exclude_seen else 0
    batch = parts.evaluation_forms(evaluator.batch_rows, seen=seen)
    variables = state.evaluation_variables()
    beside = bytes_on_each(state) - bytes_on_each(variables)
    for name, (program, arguments) in evaluator.programs(variables, batch).items():
        here = beside if name in _VALIDATING else 0
        yield _compiled(f"evaluation, {name}", program, arguments, only_lower, options, here)


def bytes_on_each(tree: Any) -> int:
    """What arrays with these shapes and shardings take on one device, without the padding of its layout."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)


def table_shapes(state: TrainState) -> set[tuple[int, ...]]:
    """The shapes of a device's shares of what has a row per item and is learned: tables, their moments and averages."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {a.sharding.shard_shape(a.shape) for path, a in leaves if a.ndim > 1 and has_item_rows(path, a)}


def declared_experiment(config: Config, mesh: Mesh) -> Experiment:
    """The parts of a run on a log such as `config.dry_run` declares, of which there is none."""
    check_batch(mesh, config.train.batch_size, "config.train.batch_size")
    catalogue, sizes = abstract_catalogue(config, mesh)
    tx = make_optimizer(config.optim, config.train.steps)
    return Experiment(config, None, None, catalogue, build_retriever(config, sizes), mesh, tx)


def abstract_catalogue(config: Config, mesh: Mesh) -> tuple[Catalogue, Sizes]:
    """Shapes and shardings of the catalogue that `config.dry_run` declares, and the sizes of such a log."""
    told, multiple = config.dry_run, config.model.row_multiple
    rows = table_rows(told.n_items, multiple)
    check_rows(mesh, rows)

    def array(width: int | None, dtype: Any) -> jax.ShapeDtypeStruct:
        shape = (rows,) if width is None else (rows, width)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))

    catalogue = Catalogue(
        array(None, jnp.float32),
        array(told.categories_per_item, jnp.int32) if told.categories else None,
        array(told.content, jnp.float32) if told.content else None,
        told.n_items,
    )
    categories = told.categories + 1 if told.categories else 0
    args = categories, told.content, tuple(told.user_features), config.data.real_times, told.n_users
    return catalogue, Sizes(rows, config.data.window, *args)


def described(program: Program, devices: int) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"{program.name}: {program.flops / 1e9:,.1f} GFLOP in matrix products, "
        f"{program.flops / devices / 1e9:,.2f} a device, {program.seconds:.0f} s to compile"
    )
    if program.refusal:
        yield f"  not compiled: {program.refusal}"
    if program.memory is None:
        return
    m = program.memory
    yield (
        f"  memory per device  {_size(m.total)}: arguments {_size(m.arguments)}, results {_size(m.results)} (of which "
        f"in place {_size(m.aliased)}), temporaries {_size(m.temporaries)}, code {_size(m.code)}"
    )
    if program.beside:
        yield f"  beside it           {_size(program.beside)} of the train state, while training validates"
    if program.copies:
        times = f"{program.copies} times (on TPUs: docs/pods.md, widths of tables)"
        yield f"  shares of item tables are copied whole, {times}"
    for c in program.collectives:
        doubt = "" if c.loops_known else " (some in a loop of unknown length, counted once)"
        yield f"  {c.kind:25s} {c.count:6,d} times, {_size(c.bytes)} a device, largest {_size(c.largest)}{doubt}"
    if not program.collectives:
        yield "  no collectives"


def _compiled(
    name: str,
    function: Any,
    arguments: tuple[Any, ...],
    only_lower: bool,
    options: dict[str, Any] | None,
    beside: int = 0,
    tables: Container[tuple[int, ...]] = (),
) -> Program:
    start, traced = time.perf_counter(), function.trace(*arguments)
    flops = product_flops(traced.jaxpr.jaxpr)
    if only_lower:
        traced.lower(lowering_platforms=("cuda",))
        return Program(name, flops, time.perf_counter() - start, None, None, "", beside)
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Program(name, flops, time.perf_counter() - start, None, None, str(error).splitlines()[0])
    seconds = time.perf_counter() - start
    told = memory_of(compiled), collectives_of(compiled)
    return Program(name, flops, seconds, *told, "", beside, copies_of(compiled, tables))


def _size(count: int) -> str:
    """Bytes for people."""
    power = min(int(math.log2(count)) // 10, 3) if count else 0
    return f"{count / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
