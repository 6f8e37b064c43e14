"""The item table in blocks, and the scoring of users against all of it: streaming ranks and log loss.

No [B, N] matrix is kept. Products are in full float32: an accelerator's default would round the scores that ranks
compare.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num, UInt

# Equal item vectors can differ in the last bits of their scores, as products of different shapes sum in different
# order; closer than this times |u| |e| counts as a tie.
_TIE = 16 * float(jnp.finfo(jnp.float32).eps)
GROUP = 16  # neighbouring rows of which a search first sees the greatest score: blocks consist of whole groups
KERNEL_GROUP = 64  # the same in the kernel for GPUs (`hopper.py`)
TILE = 128  # rows that this kernel multiplies at a time, of which blocks in bfloat16 consist
WIDEST = 256  # numbers of a row that it has room for


class Users(NamedTuple):
    """User vectors [B, M, U], their mask [B, M], and ids [B, S] that leave the ranking (0: none), or None."""

    vectors: Float[Array, "B M U"]
    mask: Bool[Array, "B M"]
    excluded: Int[Array, "B S"] | None


class Coarse(NamedTuple):
    """The vectors of a table at less precision: blocks times the scale of their row."""

    blocks: Num[Array, "n p b U"]
    scale: Float[Array, "n p b"]


class BlockedTable(NamedTuple):
    """Item vectors in blocks, each of which has a share of every part of the table.

    Attributes:
      blocks: n blocks of b rows of each of p parts. Row i of the table is in part i // part_rows.
      part: numbers of the parts.
      part_rows: rows of a part that are of the table; what follows them, and rows beyond n_items, only fill.
      length: that of the longest item vector; NaN where one has a NaN.
      coarse: what is searched for the best items, which are then scored from `blocks`; None: `blocks` itself.
    """

    blocks: Float[Array, "n p b U"]
    part: Int[Array, " p"]
    part_rows: Int[Array, ""]
    n_items: Int[Array, ""]
    length: Float[Array, ""]
    coarse: Coarse | None

    def rows(self, ids: Int[Array, "..."]) -> Float[Array, "... U"]:
        """The vectors of items."""
        part, place = ids // self.part_rows, ids % self.part_rows
        return self.blocks[place // self.blocks.shape[2], part, place % self.blocks.shape[2]]


def block_table(
    table: Float[Array, "R U"], n_items: int, block: int, *, parts: int = 1, search: str = "float32"
) -> BlockedTable:
    """Cuts a table into equal blocks of at most `block` rows (rounded up to 16 rows of each part; bfloat16: to 128).

    parts: a divisor of R. Where the rows lie on that many devices in equal shares, no row has to move.
    search: float32, or bfloat16 or int8 (with a scale for every row): of what `top_k` reads whole.
    """
    rows, count = table.shape[0] // parts, -(-table.shape[0] // block)
    whole = TILE if search == "bfloat16" else GROUP
    size = -(-rows // (whole * count)) * whole
    count = -(-rows // size)
    padded = jnp.pad(table.reshape(parts, rows, -1), ((0, 0), (0, count * size - rows), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(parts, count, size, -1), 1, 0)
    coarse = None if search == "float32" else _coarse(blocks, search)
    ids = jnp.arange(len(table))
    squares = jnp.where((ids > 0) & (ids <= n_items), jnp.square(table).sum(axis=1), 0)
    sizes = jnp.int32(rows), jnp.int32(n_items), jnp.sqrt(squares.max())  # a maximum keeps NaN
    return BlockedTable(blocks, jnp.arange(parts, dtype=jnp.int32), *sizes, coarse)


def fits_kernel(rows: int, width: int) -> bool:
    """Whether the kernel for GPUs can take a table of so many rows of so many numbers."""
    return rows % TILE == 0 and width % 64 == 0 and width <= WIDEST


def _coarse(blocks: Float[Array, "n p b U"], dtype: str) -> Coarse:
    if dtype == "bfloat16":
        return Coarse(blocks.astype(jnp.bfloat16), jnp.ones(blocks.shape[:3]))
    scale = jnp.abs(blocks).max(axis=-1) / 127
    whole = jnp.round(blocks / jnp.where(scale > 0, scale, 1)[..., None])
    return Coarse(whole.astype(jnp.int8), scale)


def table_partition(search: str = "float32") -> BlockedTable:
    """How the arrays of a table lie on the mesh: each device of the axis "model" has whole parts."""
    by_part = PartitionSpec(None, "model")
    coarse = None if search == "float32" else Coarse(by_part, by_part)
    return BlockedTable(by_part, PartitionSpec("model"), *[PartitionSpec()] * 3, coarse)


def by_parts(function: Callable[[Any, BlockedTable], Any], mesh: Mesh | None, table: BlockedTable) -> Any:
    """`function` of (what lies by user, table) to arrays [B, p, ...], each device with its own users and parts.

    Left to itself the compiler would let devices wait for each other at every block, or collect all scores.

    mesh: where users lie over its axis "data" and parts of the table over "model"; None: `function` itself.
    """
    if mesh is None:
        return function
    search = "float32" if table.coarse is None else table.coarse.blocks.dtype.name
    specs, out = (PartitionSpec("data"), table_partition(search)), PartitionSpec("data", "model")
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)


def score_targets(
    users: Users,
    table: BlockedTable,
    targets: Int[Array, " B"],
    target_vectors: Float[Array, "B U"],
    *,
    merge: str,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Rank and log loss of each target, float32 [B] each, from one scan.

    Rank: 1 + number of greater scores + ties / 2 among all other items; behind all of them, n_items + 1, where the
    target may not be ranked, as no user will see it. Log loss: -log of the target's probability among it and what else
    may be ranked, under the merged scores; with "max", which is no model of it, as with "softmax_mean". Both are NaN
    where a score is NaN or could be infinite, and for a user without a vector.

    merge: of the scores with the M user vectors, "max"; "softmax_mean": the log of the mean of their softmaxes over
      what may be ranked; "logsumexp": the log of the mean of their exponentials.
    mesh: see `by_parts`.
    """
    shift = shift_of(users, table, merge, mesh)
    product = dot("bmu,bu->bm", users.vectors, target_vectors)
    size = jnp.linalg.norm(users.vectors, axis=-1) * jnp.linalg.norm(target_vectors, axis=-1)[:, None]
    own = merge_vectors((product - shift)[..., None], users.mask, merge)
    terms = math.log(users.mask.shape[1]) if merge == "logsumexp" else 0.0  # their sum rounds by its own size
    slack = _TIE * jnp.max(jnp.where(users.mask, size + jnp.abs(shift) + terms, 0), axis=1, keepdims=True)

    twice, totals = by_parts(functools.partial(_count, merge=merge), mesh, table)((users, shift, own, slack), table)
    twice, totals = twice.sum(axis=1, dtype=jnp.uint32), jax.nn.logsumexp(totals, axis=1)
    # No score is greater than the product of the lengths, so none has to be looked at for NaN and infinity.
    greatest = jnp.linalg.norm(users.vectors, axis=-1) * table.length
    bad = ~jnp.isfinite(own[:, 0]) | (users.mask & ~jnp.isfinite(greatest)).any(axis=1)
    counted = (targets > 0) & (targets <= table.n_items)  # as a tie of itself
    rank = 1 + (jnp.maximum(twice, counted) - counted) / 2
    if users.excluded is not None:
        had = (users.excluded == targets[:, None]).any(axis=1)
        rank = jnp.where(had, table.n_items + 1.0, rank)
        totals = jnp.where(had[:, None], jnp.logaddexp(totals, product), totals)
    if merge == "logsumexp":
        total, positive = (merge_vectors(a[..., None], users.mask, merge)[:, 0] for a in (totals, product))
        loss = total - positive
    else:
        loss = -merge_vectors((product - totals)[..., None], users.mask, "softmax_mean")[:, 0]
    return jnp.where(bad, jnp.nan, rank), jnp.where(bad, jnp.nan, loss)


def _count(
    by_user: tuple[Users, Array, Array, Array], table: BlockedTable, *, merge: str
) -> tuple[UInt[Array, "B p"], Float[Array, "B p M"]]:
    """Of each part: twice the scores greater than a user's own, plus the ties; the logs of the softmax's sums."""
    users, shift, own, slack = by_user

    def add(carry: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        twice, totals = carry
        _, products = block_products(users, block, table)
        scores = merge_vectors(products - shift[..., None], users.mask, merge)
        ahead = jnp.where(scores > own + slack, 1.0, jnp.where(scores >= own - slack, 0.5, 0.0))
        twice += (2 * ahead.reshape(*twice.shape, -1).sum(axis=-1)).astype(jnp.uint32)
        return (twice, _add(totals, products)), None

    start = jnp.zeros((len(own), table.blocks.shape[1]), jnp.uint32), _nothing(users, table)
    (twice, totals), _ = jax.lax.scan(add, start, _numbered(table))
    return twice, totals.swapaxes(1, 2)


def _numbered(table: BlockedTable) -> tuple[Array, Array]:
    return table.blocks, jnp.arange(table.blocks.shape[0])


def block_products(users: Users, block: tuple[Array, Array], table: BlockedTable) -> tuple[Array, Array]:
    """ids [1, p b] and products [B, M, p b] with the vectors of one numbered block; -inf for what may not be ranked."""
    vectors, number = block
    ids, rankable = rankable_rows(users, number, table)
    products = dot("bmu,pnu->bmpn", users.vectors, vectors).reshape(*users.mask.shape, -1)
    return ids, jnp.where(rankable[:, None], products, -jnp.inf)


def rankable_rows(users: Users, number: Array, table: BlockedTable) -> tuple[Array, Array]:
    """ids [1, p b] of one block and which of them may be ranked, [B or 1, p b]."""
    _, parts, size, _ = table.blocks.shape
    place = number * size + jnp.arange(size, dtype=jnp.int32)[None]
    ids = table.part[:, None] * table.part_rows + place
    items = ((place < table.part_rows) & (ids > 0) & (ids <= table.n_items)).reshape(1, -1)
    if users.excluded is None:
        return ids.reshape(1, -1), items
    part = users.excluded // table.part_rows - table.part[0]
    column = users.excluded % table.part_rows - number * size
    # An index outside the block would lie in another part: it goes past the end of all, where it is dropped.
    inside = (part >= 0) & (part < parts) & (column >= 0) & (column < size)
    column = jnp.where(inside, part * size + column, parts * size)
    items = jnp.broadcast_to(items, (len(column), parts * size))
    items = items.at[jnp.arange(len(column))[:, None], column].set(False, mode="drop")
    return ids.reshape(1, -1), items


def merge_vectors(scores: Float[Array, "B M n"], mask: Bool[Array, "B M"], merge: str) -> Float[Array, "B n"]:
    """One score of each item from those with the M vectors of a user; how: see `score_targets`."""
    scores = jnp.where(mask[..., None], scores, -jnp.inf)
    if merge == "max" or scores.shape[1] == 1:
        return scores.max(axis=1)
    return jax.nn.logsumexp(scores, axis=1) - jnp.log(mask.sum(axis=1, keepdims=True))


def shift_of(users: Users, table: BlockedTable, merge: str, mesh: Mesh | None = None) -> Float[Array, "B M"]:
    """What is taken from the scores of each vector before they are merged: 0, or the log of its softmax's sum."""
    if merge != "softmax_mean":
        return jnp.zeros(users.mask.shape)
    totals = jax.nn.logsumexp(by_parts(_softmax_sums, mesh, table)(users, table), axis=1)
    return jnp.where(totals > -jnp.inf, totals, 0)  # where nothing may be ranked


def _softmax_sums(users: Users, table: BlockedTable) -> Float[Array, "B p M"]:
    """The logs of the sums of each part."""

    def add(totals: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return _add(totals, block_products(users, block, table)[1]), None

    totals, _ = jax.lax.scan(add, _nothing(users, table), _numbered(table))
    return totals.swapaxes(1, 2)


def _nothing(users: Users, table: BlockedTable) -> Float[Array, "B M p"]:
    """Logs of sums over no item."""
    return jnp.full((*users.mask.shape, table.blocks.shape[1]), -jnp.inf)


def _add(totals: Float[Array, "B M p"], products: Float[Array, "B M n"]) -> Float[Array, "B M p"]:
    """Logs of sums of exponentials, with those of one more block, of n = p b rows."""
    products = products.reshape(*totals.shape, -1)
    most = products.max(axis=-1)
    base = jnp.where(jnp.isfinite(most), most, 0)
    return jnp.logaddexp(totals, base + jnp.log(jnp.exp(products - base[..., None]).sum(axis=-1)))


def dot(equation: str, a: Array, b: Array) -> Array:
    """An einsum of two arrays in full precision, with float32 sums."""
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
