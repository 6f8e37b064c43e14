"""The best items of users from the whole table: exact, at less precision and scored again, or from a file on disk.

Groups of neighbouring rows are searched by their greatest score, then the rows of the best groups: sorting all scores
would cost more than they do.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.data.batches import prefetch
from t2diff_jax.retrieval import (
    GROUP,
    KERNEL_GROUP,
    BlockedTable,
    Coarse,
    Users,
    block_products,
    block_table,
    by_parts,
    dot,
    fits_kernel,
    merge_vectors,
    rankable_rows,
    shift_of,
)

_SORTED_AT_ONCE = 65_536  # rows of which the maxima are collected before the best are taken
_MARGIN = 2  # times as many groups are found where they are searched for at less precision
_AT_ONCE = 32  # users whose groups are scored again at a time: k * 16 vectors each
# By the kernel for GPUs: users at a time, whose maxima are rows / 64 * 4 bytes each; groups of users that are scored
# again at a time, 64 vectors each; groups of which the maximum is taken before the best are; ids that a user may leave
# out, for each of which a group more is scored.
_SLICE = 1024
_GROUPS_ON_GPU = 32_768
_TOGETHER = 32
_LEFT_OUT = 1024
# Of equal values any may come first, for which GPUs have a way that does not sort; jax before 0.11 has one order.
_ANY_ORDER = {"is_stable": False} if "is_stable" in inspect.signature(jax.lax.top_k).parameters else {}


def top_k(
    users: Users, table: BlockedTable, k: int, *, merge: str, mesh: Mesh | None = None, found: float = 1.0
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The k best items: scores, and ids in descending order of score, the smaller id first on a tie.

    Exact, but where `table.coarse` is searched or `found` is below 1: then an item may be missed, and those that are
    found have their exact scores. Where fewer than k items may be recommended, the rest is id 0 with score -inf.

    mesh: see `retrieval.by_parts`.
    found: share of the best groups of rows that the search is to find; below 1 it is `jax.lax.approx_max_k`, for
      which TPUs have a way that is faster than sorting.
    """

    # A dry run's devices are not those that are here.
    processors = kernel_processors(jax.devices()[0] if mesh is None else mesh.devices.flat[0])

    def best(by_user: tuple[Users, Array], table: BlockedTable) -> tuple[Array, Array]:
        users, shift = by_user
        if processors and _kernel_fits(users, table, merge):
            return _best_by_kernel(users, shift, table, k, merge, processors)
        return _best_of_parts(users, shift, table, k, merge, found)

    shift = shift_of(users, table, merge, mesh)
    scores, ids = by_parts(best, mesh, table)((users, shift), table)
    scores, ids = _best(scores.reshape(scores.shape[0], -1), ids.reshape(ids.shape[0], -1), k)
    return scores, jnp.where(jnp.isfinite(scores), ids, 0)


def top_k_from_disk(
    users: Users, table: np.ndarray, k: int, *, merge: str, rows: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` among the items of a table that is mapped from a file and never in memory as a whole.

    Some rows are read while the ones before them are scored; each lot is a part of the table, as if it lay on a device
    of its own. Exact.

    Args:
      table: float [N + 1, U], row i the vector of item i (row 0 is not read as an item); any float type.
      rows: read at a time; block: rows that are scored at a time.

    Raises:
      ValueError: merge is "softmax_mean", which needs all scores before the first can be compared.
    """
    if merge == "softmax_mean":
        raise ValueError("merge: softmax_mean reads the whole table twice; use max or logsumexp")
    rows = min(rows, len(table))

    def read(number: int) -> np.ndarray:
        part = np.asarray(table[number * rows : (number + 1) * rows], np.float32)
        return part if len(part) == rows else np.pad(part, ((0, rows - len(part)), (0, 0)))

    size = len(users.vectors), k
    best = jnp.full(size, -jnp.inf), jnp.zeros(size, jnp.int32)
    for number, part in enumerate(prefetch(read, range(-(-len(table) // rows)), depth=1)):
        jax.block_until_ready(best)  # else lots would be read ahead of the scoring, and all be in memory
        best = _with_part(best, users, part, jnp.int32(number), jnp.int32(len(table) - 1), block, k, merge)
    return tuple(map(np.asarray, best))


@functools.partial(jax.jit, static_argnames=("block", "k", "merge"))
def _with_part(
    best: tuple[Array, Array], users: Users, part: Array, number: Array, n_items: Array, block: int, k: int, merge: str
) -> tuple[Array, Array]:
    """The best so far, which have smaller ids, and those of one more part of the table."""
    table = block_table(part, 0, block)._replace(part=number[None], n_items=n_items)
    found = top_k(users, table, k, merge=merge)
    return _best(*(jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True)), k)


def _best_of_parts(
    users: Users, shift: Array, table: BlockedTable, k: int, merge: str, found: float
) -> tuple[Float[Array, "B p k"], Int[Array, "B p k"]]:
    """Of each part: first the k groups of neighbours with the greatest members, then the best of these.

    No item can be among the k best whose group is not: each of k groups before its own has an item before it, of equal
    score the one of the smaller id, as ids ascend from group to group.
    """
    groups = _best_groups(users, shift, table, k if table.coarse is None else _MARGIN * k, merge, found)
    return _members(users, shift, table, groups, GROUP, k, merge, _AT_ONCE)


def _members(
    users: Users,
    shift: Array,
    table: BlockedTable,
    groups: Int[Array, "B p g"],
    size: int,
    k: int,
    merge: str,
    at_once: int,
) -> tuple[Float[Array, "B p k"], Int[Array, "B p k"]]:
    """The k best rows of some groups of `size` rows; so many users at once."""
    take = _best if table.coarse is None else _best_sorted_after

    def members(user: tuple[Users, Array, Array]) -> tuple[Array, Array]:
        one, shift, groups = jax.tree.map(lambda a: a[None], user)
        first = jnp.sort(groups, axis=2)[..., None] * size
        places = (first + jnp.arange(size).reshape(1, 1, 1, -1)).reshape(*groups.shape[:2], -1)
        scores, ids = _scored(one, shift, table, places, merge)
        filled = ((0, 0), (0, 0), (0, k))
        scores, ids = jnp.pad(scores, filled, constant_values=-jnp.inf), jnp.pad(ids, filled)
        return jax.tree.map(lambda a: a[0], take(scores, ids, k))

    return jax.lax.map(members, (users, shift, groups), batch_size=at_once)


def _kernel_fits(users: Users, table: BlockedTable, merge: str) -> bool:
    """Whether `hopper.group_maxima` finds the groups: with one vector their order is that of its products."""
    if table.coarse is None or table.coarse.blocks.dtype != jnp.bfloat16:
        return False
    if users.excluded is not None and users.excluded.shape[1] > _LEFT_OUT:
        return False
    blocks, parts, size, width = table.blocks.shape
    one = merge == "max" or users.vectors.shape[1] == 1
    return one and parts == 1 and fits_kernel(blocks * size, width)


def kernel_processors(device: jax.Device) -> int:
    """Multiprocessors of a GPU of the Hopper generation, whose instructions the kernel is made of; of others 0."""
    hopper = device.platform == "gpu" and getattr(device, "compute_capability", "") == "9.0"
    return device.core_count if hopper else 0


def _best_by_kernel(
    users: Users, shift: Array, table: BlockedTable, k: int, merge: str, processors: int
) -> tuple[Float[Array, "B p k"], Int[Array, "B p k"]]:
    """As `_best_of_parts`, a slice of the users at a time."""

    def best(slice_: tuple[Users, Array]) -> tuple[Array, Array]:
        groups = _groups_by_kernel(slice_[0], table, k, processors)[:, None]
        return _members(*slice_, table, groups, KERNEL_GROUP, k, merge, max(1, _GROUPS_ON_GPU // groups.shape[2]))

    count, args = len(shift), (users, shift)
    slices = -(-count // _SLICE)
    if slices == 1:
        return best(args)
    fill = -count % slices
    cut = jax.tree.map(
        lambda a: jnp.pad(a, ((0, fill), *[(0, 0)] * (a.ndim - 1))).reshape(slices, -1, *a.shape[1:]), args
    )
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], jax.lax.map(best, cut))


def _groups_by_kernel(users: Users, table: BlockedTable, k: int, processors: int) -> Int[Array, "B g"]:
    """The groups of 64 rows with the greatest maxima, in any order, of a table in one part.

    What may not be ranked is in the maxima: k items are in as many groups, and each row that is none, or that a user
    leaves out, can put one more before these; a quarter more for what is rounded.
    """
    from t2diff_jax import hopper  # half a second, which only those pay who use it

    rows, vectors, width = users.vectors.shape
    flat = users.vectors.reshape(-1, width).astype(jnp.bfloat16)
    maxima = hopper.group_maxima(flat, table.coarse.blocks.reshape(-1, width), processors=processors)
    groups = len(maxima)
    first = jnp.arange(groups) * KERNEL_GROUP
    last = jnp.minimum(first + KERNEL_GROUP, table.part_rows) - 1
    ids = table.part[0] * table.part_rows + jnp.stack([first, last])
    holds = (first < table.part_rows) & (ids[1] > 0) & (ids[0] <= table.n_items)
    maxima = jnp.where(users.mask[None], maxima.reshape(groups, rows, vectors), -jnp.inf).max(axis=2)
    maxima = jnp.where(holds[:, None], maxima, -jnp.inf)
    left_out = 3 if users.excluded is None else 3 + users.excluded.shape[1]  # 3: id 0, the last item's and part's ends
    wanted = min(k + k // 4 + left_out, groups)
    outer = jnp.pad(maxima, ((0, -groups % _TOGETHER), (0, 0)), constant_values=-jnp.inf)
    outer = outer.reshape(-1, _TOGETHER, rows).max(axis=1).T
    _, best = jax.lax.top_k(outer, min(wanted, outer.shape[1]), **_ANY_ORDER)
    inner = (best[:, :, None] * _TOGETHER + jnp.arange(_TOGETHER)[None, None]).reshape(rows, -1)
    found = maxima[jnp.minimum(inner, groups - 1), jnp.broadcast_to(jnp.arange(rows)[:, None], inner.shape)]
    _, places = jax.lax.top_k(jnp.where(inner < groups, found, -jnp.inf), wanted, **_ANY_ORDER)
    return jnp.take_along_axis(inner, places, axis=1)


def _best_groups(
    users: Users, shift: Array, table: BlockedTable, k: int, merge: str, share: float
) -> Int[Array, "B p g"]:
    """The groups of each part with the k greatest maxima, numbered along the part; a number past its end: none."""
    rows, (blocks, parts, size, _) = users.vectors.shape[0], table.blocks.shape
    groups = size // GROUP
    together = -(-blocks // -(-blocks * parts * size // _SORTED_AT_ONCE))  # in equal rounds
    exact = table.coarse is None
    searched, products_with = (table.blocks, block_products) if exact else (table.coarse, _coarse_products)

    def maxima(number: Array) -> Array:
        block = jax.tree.map(lambda a: a[jnp.minimum(number, blocks - 1)], searched)
        _, products = products_with(users, (block, number), table)
        merged = merge_vectors(products - shift[..., None], users.mask, merge)
        greatest = merged.reshape(rows, parts, groups, GROUP).max(axis=-1)
        return jnp.where(number < blocks, greatest, -jnp.inf)

    def keep(best: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        found = jax.lax.map(maxima, first + jnp.arange(together))
        found = jnp.moveaxis(found, 0, 2).reshape(rows, parts, -1)
        numbers = jnp.broadcast_to(first * groups + jnp.arange(found.shape[2]), found.shape)
        both = jnp.concatenate([best[0], found], axis=2), jnp.concatenate([best[1], numbers], axis=2)
        return _best(*both, shape[2], share), None

    shape = rows, parts, min(k, blocks * groups)
    start = jnp.full(shape, -jnp.inf), jnp.full(shape, blocks * groups, jnp.int32)
    return jax.lax.scan(keep, start, jnp.arange(0, blocks, together))[0][1]


def _scored(
    users: Users, shift: Array, table: BlockedTable, places: Int[Array, "B p c"], merge: str
) -> tuple[Float[Array, "B p c"], Int[Array, "B p c"]]:
    """Merged scores and ids of the rows at some places of each part; -inf for what may not be ranked."""
    blocks, parts, size, _ = table.blocks.shape
    within = jnp.minimum(places, blocks * size - 1)
    vectors = table.blocks[within // size, jnp.arange(parts)[None, :, None], within % size]
    ids = table.part[None, :, None] * table.part_rows + places
    rankable = (places < table.part_rows) & (ids > 0) & (ids <= table.n_items)
    if users.excluded is not None:
        rankable &= ~_among(ids, users.excluded)
    products = dot("bmu,bpcu->bmpc", users.vectors, vectors)
    products = jnp.where(rankable[:, None], products, -jnp.inf).reshape(*users.mask.shape, -1)
    return merge_vectors(products - shift[..., None], users.mask, merge).reshape(places.shape), ids


def _among(ids: Int[Array, "B p c"], some: Int[Array, "B S"]) -> Bool[Array, "B p c"]:
    """Which ids of each row are among some of its own."""

    def one(ids: Array, some: Array) -> Array:
        some = jnp.sort(some)
        return some[jnp.minimum(jnp.searchsorted(some, ids), len(some) - 1)] == ids

    return jax.vmap(one)(ids, some)


def _best(scores: Array, ids: Array, k: int, share: float = 1.0) -> tuple[Array, Array]:
    """The k greatest along the last axis, of equal ones the first; below share 1 some may be missed."""
    find = jax.lax.top_k if share == 1 else functools.partial(jax.lax.approx_max_k, recall_target=share)
    scores, places = find(scores, k)
    return scores, jnp.take_along_axis(ids, places, axis=-1)


def _best_sorted_after(scores: Array, ids: Array, k: int) -> tuple[Array, Array]:
    """As `_best`; of scores that equal the last one any may be taken."""
    scores, places = jax.lax.top_k(scores, k, **_ANY_ORDER)
    scores, ids = jax.lax.sort((-scores, jnp.take_along_axis(ids, places, axis=-1)), num_keys=2)
    return -scores, ids


def _coarse_products(users: Users, block: tuple[Coarse, Array], table: BlockedTable) -> tuple[Array, Array]:
    """As `block_products`, of a block at less precision."""
    (vectors, scale), number = block
    ids, rankable = rankable_rows(users, number, table)
    # Whole numbers up to 127 are exact in bfloat16.
    products = dot("bmu,pnu->bmpn", users.vectors.astype(jnp.bfloat16), vectors.astype(jnp.bfloat16))
    products = (products * scale[None, None]).reshape(*users.mask.shape, -1)
    return ids, jnp.where(rankable[:, None], products, -jnp.inf)
