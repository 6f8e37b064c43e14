"""For GPUs of the Hopper generation (H100, H200): the greatest product of each user with groups of neighbouring items.

What the compiler makes of this product writes every score to memory and reads it again, which takes ten times as long
as the products. Here a block holds some users, items stream past them, and only the maxima leave.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float

from t2diff_jax.retrieval import KERNEL_GROUP, TILE, fits_kernel

_WARPGROUPS = 2  # that multiply, each its own users; one more fetches the items
_SHARED = 200 * 1024  # bytes of a multiprocessor's shared memory for users and items
Ref = Any  # memory, barriers and accumulators of the device, for which jax has no type of their own
_WAVES = 4  # blocks for each multiprocessor: few start anew, and none ends long after the others


def group_maxima(
    users: BFloat16[Array, "B U"],
    items: BFloat16[Array, "R U"],
    *,
    processors: int,
    interpret: object = None,
) -> Float[Array, "R/64 B"]:
    """max over the 64 items of group g of <users[b], items[i]>, sums in float32.

    Args:
      processors: multiprocessors of the device.
      interpret: parameters of Pallas' interpreter for GPU kernels, for tests on other devices.

    Raises:
      ValueError: R is no multiple of 128, or U none of 64, or above 256 (`fits_kernel`).
    """
    (count, width), rows = users.shape, items.shape[0]
    if not fits_kernel(rows, width):
        raise ValueError(f"group_maxima: items [{rows}, {width}]; rows must be whole tiles of {TILE}, width 64 to 256")
    users_each = 128 if width <= 192 else 64  # of a warpgroup: their products fill its registers
    block = _WARPGROUPS * users_each
    padded = jnp.pad(users, ((0, -count % block), (0, 0)))
    user_blocks, tiles = len(padded) // block, rows // TILE
    share = -(-tiles // max(1, _WAVES * processors // user_blocks))  # tiles of a block
    kernel = plgpu.kernel(
        functools.partial(_kernel, users_each=users_each, tiles=tiles, share=share),
        out_type=jax.ShapeDtypeStruct((rows // KERNEL_GROUP, len(padded)), jnp.float32),
        grid=(user_blocks, -(-tiles // share)),
        grid_names=("users", "items"),
        num_threads=_WARPGROUPS + 1,
        thread_name="warpgroup",
        **({} if interpret is None else {"interpret": interpret}),
    )
    return kernel(padded, items)[:, :count]


def _kernel(users: Ref, items: Ref, out: Ref, *, users_each: int, tiles: int, share: int) -> None:
    """One block: some users, and a share of the tiles of items."""
    width = users.shape[1]
    stages = min(4, (_SHARED - _WARPGROUPS * users_each * width * 2) // (TILE * width * 2))
    layout = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    memory = (
        plgpu.SMEM((_WARPGROUPS, users_each, width), jnp.bfloat16, transforms=layout),
        plgpu.SMEM((stages, TILE, width), jnp.bfloat16, transforms=layout),
        plgpu.SMEM((_WARPGROUPS, 2, TILE // KERNEL_GROUP, users_each), jnp.float32),
    )
    barriers = (
        plgpu.Barrier(num_barriers=_WARPGROUPS),  # users are there
        plgpu.Barrier(num_barriers=stages),  # a tile is there
        plgpu.Barrier(num_arrivals=_WARPGROUPS, num_barriers=stages),  # a tile has been read
    )

    def run(memory: tuple[Ref, ...], barriers: tuple[Ref, ...]) -> None:
        me, first = lax.axis_index("warpgroup"), lax.axis_index("items") * share
        part = first, jnp.minimum(share, tiles - first)

        @pl.when(me < _WARPGROUPS)
        def _() -> None:
            _multiply(users, out, memory, barriers, me, *part)

        @pl.when(me == _WARPGROUPS)
        def _() -> None:
            _fetch(items, memory[1], barriers[1:], *part)

    pl.run_scoped(run, memory, barriers, collective_axes="warpgroup")


def _multiply(
    users: Ref, out: Ref, memory: tuple[Ref, ...], barriers: tuple[Ref, ...], me: Array, first: Array, steps: Array
) -> None:
    """A warpgroup's part: the maxima of its users over every tile."""
    own, tile, maxima = memory
    users_there, tile_there, tile_read = barriers
    stages, (_, _, groups, users_each) = tile.shape[0], maxima.shape
    plgpu.set_max_registers(232, action="increase")
    start = (lax.axis_index("users") * _WARPGROUPS + me) * users_each
    plgpu.copy_gmem_to_smem(users.at[pl.ds(start, users_each)], own.at[me], users_there.at[me])
    plgpu.barrier_wait(users_there.at[me])

    @pl.loop(0, steps)
    def _(number: Array) -> None:
        stage, turn = _modulo(number, stages), _modulo(number, 2)
        plgpu.barrier_wait(tile_there.at[stage])

        def product(sums: Ref) -> Array:
            plgpu.wgmma(sums, own.at[me], tile.at[stage].transpose((1, 0)))
            return sums[...]

        scores = pl.run_scoped(product, plgpu.ACC((users_each, TILE), jnp.float32))
        plgpu.barrier_arrive(tile_read.at[stage])
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)  # what is written now left two steps ago
        for group in range(groups):
            maxima.at[me, turn, group][...] = scores[:, group * KERNEL_GROUP : (group + 1) * KERNEL_GROUP].max(axis=1)
        plgpu.commit_smem()
        place = pl.ds((first + number) * groups, groups), pl.ds(start, users_each)
        plgpu.copy_smem_to_gmem(maxima.at[me, turn], out.at[place])

    plgpu.wait_smem_to_gmem(0)


def _fetch(items: Ref, tile: Ref, barriers: tuple[Ref, ...], first: Array, steps: Array) -> None:
    """The last warpgroup's part: tiles come as soon as those that lay in their place have been read."""
    (there, read), stages = barriers, tile.shape[0]
    plgpu.set_max_registers(40, action="decrease")

    def fetch(number: Array | int, stage: Array | int) -> None:
        rows = pl.ds((first + number) * TILE, TILE)
        plgpu.copy_gmem_to_smem(items.at[rows], tile.at[stage], there.at[stage])

    for stage in range(stages):
        pl.when(stage < steps)(functools.partial(fetch, stage, stage))

    @pl.loop(0, steps - stages)
    def _(number: Array) -> None:
        stage = _modulo(number, stages)
        plgpu.barrier_wait(read.at[stage])
        fetch(number + stages, stage)

    @pl.loop(jnp.maximum(steps - stages, 0), steps)
    def _(number: Array) -> None:
        plgpu.barrier_wait(read.at[_modulo(number, stages)])


def _modulo(number: Array, size: int) -> Array:
    return lax.rem(number, jnp.array(size, number.dtype))
