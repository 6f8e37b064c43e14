"""Scoring users against the whole item table: streaming ranks, log loss, exact top-k; a block of items at a time.

No [B, N] matrix is kept. Products are in full float32: an accelerator's default would round the scores that ranks
compare.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from t2diff_jax.data.batches import prefetch

# Equal item vectors can differ in the last bits of their scores, as products of different shapes sum in different
# order; closer than this times |u| |e| counts as a tie.
_TIE = 16 * float(jnp.finfo(jnp.float32).eps)
# Neighbouring rows of which the search for the best first sees the maximum alone: sorting costs more than scoring.
_GROUP = 16
_SORTED_AT_ONCE = 65_536  # rows of which the maxima are collected before the best are taken
_MARGIN = 2  # times as many groups are found where they are searched for at less precision
_AT_ONCE = 32  # users whose k groups are scored again at a time: k * 16 vectors each


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
    """Cuts a table into equal blocks of at most `block` rows (rounded up to 16 rows of each part).

    parts: a divisor of R. Where the rows lie on that many devices in equal shares, no row has to move.
    search: float32, or bfloat16 or int8 (with a scale for every row): of what `top_k` reads whole.
    """
    rows, count = table.shape[0] // parts, -(-table.shape[0] // block)
    size = -(-rows // (_GROUP * count)) * _GROUP
    count = -(-rows // size)
    padded = jnp.pad(table.reshape(parts, rows, -1), ((0, 0), (0, count * size - rows), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(parts, count, size, -1), 1, 0)
    coarse = None if search == "float32" else _coarse(blocks, search)
    ids = jnp.arange(len(table))
    squares = jnp.where((ids > 0) & (ids <= n_items), jnp.square(table).sum(axis=1), 0)
    sizes = jnp.int32(rows), jnp.int32(n_items), jnp.sqrt(squares.max())  # a maximum keeps NaN
    return BlockedTable(blocks, jnp.arange(parts, dtype=jnp.int32), *sizes, coarse)


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


def score_targets(
    users: Users, table: BlockedTable, targets: Int[Array, " B"], target_vectors: Float[Array, "B U"], *, merge: str
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Rank and log loss of each target, float32 [B] each, from one scan.

    Rank: 1 + number of greater scores + ties / 2 among all other items. Log loss: -log of the target's probability
    among it and what else may be ranked, under the merged scores; with "max", which is no model of it, as with
    "softmax_mean". Both are NaN where a score is NaN or could be infinite, and for a user without a vector.

    merge: of the scores with the M user vectors, "max"; "softmax_mean": the log of the mean of their softmaxes over
      what may be ranked; "logsumexp": the log of the mean of their exponentials.
    """
    shift = _shift(users, table, merge)
    product = _dot("bmu,bu->bm", users.vectors, target_vectors)
    size = jnp.linalg.norm(users.vectors, axis=-1) * jnp.linalg.norm(target_vectors, axis=-1)[:, None]
    own = _merge((product - shift)[..., None], users.mask, merge)
    slack = _TIE * jnp.max(jnp.where(users.mask, size + jnp.abs(shift), 0), axis=1, keepdims=True)

    def count(carry: tuple[Array, ...], block: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        twice, most, totals = carry
        _, products = _products(users, block, table)
        scores = _merge(products - shift[..., None], users.mask, merge)
        ahead = jnp.where(scores > own + slack, 1.0, jnp.where(scores >= own - slack, 0.5, 0.0)).sum(axis=1)
        twice += (2 * ahead).astype(jnp.int32)
        most_here = products.max(axis=-1)
        return (twice, jnp.maximum(most, most_here), _add(totals, products, most_here)), None

    start = jnp.zeros(targets.shape, jnp.int32), *(jnp.full(users.mask.shape, -jnp.inf),) * 2
    (twice, _, totals), _ = jax.lax.scan(count, start, _numbered(table))
    # No score is greater than the product of the lengths, so none has to be looked at for NaN and infinity.
    greatest = jnp.linalg.norm(users.vectors, axis=-1) * table.length
    bad = ~jnp.isfinite(own[:, 0]) | (users.mask & ~jnp.isfinite(greatest)).any(axis=1)
    # The target has been counted as a tie of itself, where it may be ranked.
    counted = (targets > 0) & (targets <= table.n_items)
    if users.excluded is not None:
        counted &= ~(users.excluded == targets[:, None]).any(axis=1)
    rank = 1 + (twice - counted) / 2
    if users.excluded is not None:
        repeats = (users.excluded == targets[:, None]).any(axis=1, keepdims=True)
        totals = jnp.where(repeats, jnp.logaddexp(totals, product), totals)
    if merge == "logsumexp":
        total, positive = (_merge(a[..., None], users.mask, merge)[:, 0] for a in (totals, product))
        loss = total - positive
    else:
        loss = -_merge((product - totals)[..., None], users.mask, "softmax_mean")[:, 0]
    return jnp.where(bad, jnp.nan, rank), jnp.where(bad, jnp.nan, loss)


def top_k(
    users: Users, table: BlockedTable, k: int, *, merge: str, mesh: Mesh | None = None, found: float = 1.0
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The k best items: scores, and ids in descending order of score, the smaller id first on a tie.

    Exact, but where `table.coarse` is searched or `found` is below 1: then an item may be missed, and those that are
    found have their exact scores. Where fewer than k items may be recommended, the rest is id 0 with score -inf.

    mesh: where users lie over its axis "data" and parts of the table over "model". The compiler would collect all
      scores before it takes the best; so each device is told to take its own.
    found: share of the best groups of rows that the search is to find; below 1 it is `jax.lax.approx_max_k`, for
      which TPUs have a way that is faster than sorting.
    """

    def best(users: Users, shift: Array, table: BlockedTable) -> tuple[Array, Array]:
        return _best_of_parts(users, shift, table, k, merge, found)

    if mesh is not None:
        by_user, out = PartitionSpec("data"), PartitionSpec("data", "model")
        search = "float32" if table.coarse is None else table.coarse.blocks.dtype.name
        specs = by_user, by_user, table_partition(search)
        best = jax.shard_map(best, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    scores, ids = best(users, _shift(users, table, merge), table)
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

    def members(user: tuple[Users, Array, Array]) -> tuple[Array, Array]:
        one, shift, groups = jax.tree.map(lambda a: a[None], user)
        first = jnp.sort(groups, axis=2)[..., None] * _GROUP
        places = (first + jnp.arange(_GROUP).reshape(1, 1, 1, -1)).reshape(*groups.shape[:2], -1)
        scores, ids = _scored(one, shift, table, places, merge)
        filled = ((0, 0), (0, 0), (0, k))
        scores, ids = jnp.pad(scores, filled, constant_values=-jnp.inf), jnp.pad(ids, filled)
        return jax.tree.map(lambda a: a[0], _best(scores, ids, k))

    return jax.lax.map(members, (users, shift, groups), batch_size=_AT_ONCE)


def _best_groups(
    users: Users, shift: Array, table: BlockedTable, k: int, merge: str, share: float
) -> Int[Array, "B p g"]:
    """The groups of each part with the k greatest maxima, numbered along the part; a number past its end: none."""
    rows, (blocks, parts, size, _) = users.vectors.shape[0], table.blocks.shape
    groups = size // _GROUP
    together = -(-blocks // -(-blocks * parts * size // _SORTED_AT_ONCE))  # in equal rounds
    exact = table.coarse is None
    searched, products_with = (table.blocks, _products) if exact else (table.coarse, _coarse_products)

    def maxima(number: Array) -> Array:
        block = jax.tree.map(lambda a: a[jnp.minimum(number, blocks - 1)], searched)
        _, products = products_with(users, (block, number), table)
        merged = _merge(products - shift[..., None], users.mask, merge)
        greatest = merged.reshape(rows, parts, groups, _GROUP).max(axis=-1)
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
    products = _dot("bmu,bpcu->bmpc", users.vectors, vectors)
    products = jnp.where(rankable[:, None], products, -jnp.inf).reshape(*users.mask.shape, -1)
    return _merge(products - shift[..., None], users.mask, merge).reshape(places.shape), ids


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


def _numbered(table: BlockedTable) -> tuple[Array, Array]:
    return table.blocks, jnp.arange(table.blocks.shape[0])


def _products(users: Users, block: tuple[Array, Array], table: BlockedTable) -> tuple[Array, Array]:
    """ids [1, p b] and products [B, M, p b] with the vectors of one numbered block; -inf for what may not be ranked."""
    vectors, number = block
    ids, rankable = _rankable(users, number, table)
    products = _dot("bmu,pnu->bmpn", users.vectors, vectors).reshape(*users.mask.shape, -1)
    return ids, jnp.where(rankable[:, None], products, -jnp.inf)


def _coarse_products(users: Users, block: tuple[Coarse, Array], table: BlockedTable) -> tuple[Array, Array]:
    """As `_products`, of a block at less precision."""
    (vectors, scale), number = block
    ids, rankable = _rankable(users, number, table)
    # Whole numbers up to 127 are exact in bfloat16.
    products = _dot("bmu,pnu->bmpn", users.vectors.astype(jnp.bfloat16), vectors.astype(jnp.bfloat16))
    products = (products * scale[None, None]).reshape(*users.mask.shape, -1)
    return ids, jnp.where(rankable[:, None], products, -jnp.inf)


def _rankable(users: Users, number: Array, table: BlockedTable) -> tuple[Array, Array]:
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


def _merge(scores: Float[Array, "B M n"], mask: Bool[Array, "B M"], merge: str) -> Float[Array, "B n"]:
    scores = jnp.where(mask[..., None], scores, -jnp.inf)
    if merge == "max" or scores.shape[1] == 1:
        return scores.max(axis=1)
    return jax.nn.logsumexp(scores, axis=1) - jnp.log(mask.sum(axis=1, keepdims=True))


def _shift(users: Users, table: BlockedTable, merge: str) -> Float[Array, "B M"]:
    """What is taken from the scores of each vector before they are merged: 0, or the log of its softmax's sum."""
    if merge != "softmax_mean":
        return jnp.zeros(users.mask.shape)

    def add(totals: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        products = _products(users, block, table)[1]
        return _add(totals, products, products.max(axis=-1)), None

    totals, _ = jax.lax.scan(add, jnp.full(users.mask.shape, -jnp.inf), _numbered(table))
    return jnp.where(totals > -jnp.inf, totals, 0)  # where nothing may be ranked


def _add(
    totals: Float[Array, "B M"], products: Float[Array, "B M b"], most: Float[Array, "B M"]
) -> Float[Array, "B M"]:
    """Logs of sums of exponentials, with those of one more block, whose greatest products are known."""
    base = jnp.where(jnp.isfinite(most), most, 0)
    return jnp.logaddexp(totals, base + jnp.log(jnp.exp(products - base[..., None]).sum(axis=-1)))


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
