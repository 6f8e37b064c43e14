"""Scoring users against the whole item table: streaming ranks, log loss, exact top-k; a block of items at a time.

No [B, N] matrix is kept. Products are in full float32: an accelerator's default would round the scores that ranks
compare.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Equal item vectors can differ in the last bits of their scores, as products of different shapes sum in different
# order; closer than this times |u| |e| counts as a tie.
_TIE = 16 * float(jnp.finfo(jnp.float32).eps)


class Users(NamedTuple):
    """User vectors [B, M, U], their mask [B, M], and ids [B, S] that leave the ranking (0: none), or None."""

    vectors: Float[Array, "B M U"]
    mask: Bool[Array, "B M"]
    excluded: Int[Array, "B S"] | None


class BlockedTable(NamedTuple):
    """Item vectors in blocks [n, b, U] and the id of the first item of each block [n]; ids beyond n_items only fill."""

    blocks: Float[Array, "n b U"]
    starts: Int[Array, " n"]
    n_items: Int[Array, ""]


def block_table(table: Float[Array, "R U"], n_items: int, block: int) -> BlockedTable:
    """Cuts a table into equal blocks of at most `block` rows (rounded up to 8)."""
    count = -(-table.shape[0] // block)
    size = -(-table.shape[0] // (8 * count)) * 8
    padded = jnp.pad(table, ((0, count * size - table.shape[0]), (0, 0)))
    return BlockedTable(padded.reshape(count, size, -1), jnp.arange(count) * size, jnp.int32(n_items))


def score_targets(
    users: Users, table: BlockedTable, targets: Int[Array, " B"], target_vectors: Float[Array, "B U"], *, merge: str
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Rank and log loss of each target, float32 [B] each, from one scan.

    Rank: 1 + number of greater scores + ties / 2 among all other items. Log loss: -log of the target's probability
    among it and what else may be ranked, under the merged scores; with "max", which is no model of it, as with
    "softmax_mean". Both are NaN where a score is NaN or infinite, and for a user without a vector.

    merge: of the scores with the M user vectors, "max"; "softmax_mean": the log of the mean of their softmaxes over
      what may be ranked; "logsumexp": the log of the mean of their exponentials.
    """
    shift = _shift(users, table, merge)
    product = _dot("bmu,bu->bm", users.vectors, target_vectors)
    size = jnp.linalg.norm(users.vectors, axis=-1) * jnp.linalg.norm(target_vectors, axis=-1)[:, None]
    own = _merge((product - shift)[..., None], users.mask, merge)
    slack = _TIE * jnp.max(jnp.where(users.mask, size + jnp.abs(shift), 0), axis=1, keepdims=True)

    def count(carry: tuple[Array, ...], block: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        greater, bad, totals = carry
        ids, products = _products(users, block, table.n_items)
        scores = _merge(products - shift[..., None], users.mask, merge)
        other = ids != targets[:, None]
        above, tied = scores > own + slack, jnp.abs(scores - own) <= slack
        greater += jnp.sum(jnp.where(other, above + 0.5 * tied, 0), axis=1)
        return (greater, bad | ~(scores < jnp.inf).all(axis=1), _add(totals, products)), None

    start = (jnp.zeros(targets.shape, jnp.float32), ~jnp.isfinite(own[:, 0]), jnp.full(users.mask.shape, -jnp.inf))
    (greater, bad, totals), _ = jax.lax.scan(count, start, (table.blocks, table.starts))
    if users.excluded is not None:
        repeats = (users.excluded == targets[:, None]).any(axis=1, keepdims=True)
        totals = jnp.where(repeats, jnp.logaddexp(totals, product), totals)
    if merge == "logsumexp":
        total, positive = (_merge(a[..., None], users.mask, merge)[:, 0] for a in (totals, product))
        loss = total - positive
    else:
        loss = -_merge((product - totals)[..., None], users.mask, "softmax_mean")[:, 0]
    return jnp.where(bad, jnp.nan, 1 + greater), jnp.where(bad, jnp.nan, loss)


def top_k(users: Users, table: BlockedTable, k: int, *, merge: str) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The k best items: scores, and ids in descending order of score, the smaller id first on a tie.

    Where fewer than k items may be recommended, the rest is id 0 with score -inf.
    """
    shift = _shift(users, table, merge)

    def keep(best: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        ids, products = _products(users, block, table.n_items)
        merged = _merge(products - shift[..., None], users.mask, merge)
        scores = jnp.concatenate([best[0], merged], axis=1)
        ids = jnp.concatenate([best[1], jnp.broadcast_to(ids, (scores.shape[0], ids.shape[1]))], axis=1)
        scores, places = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(ids, places, axis=1)), None

    rows = users.vectors.shape[0]
    start = (jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32))
    (scores, ids), _ = jax.lax.scan(keep, start, (table.blocks, table.starts))
    return scores, jnp.where(jnp.isfinite(scores), ids, 0)


def _products(users: Users, block: tuple[Array, Array], n_items: Array) -> tuple[Array, Array]:
    """ids [1, b] and products [B, M, b] with the vectors of one block; -inf for what may not be ranked."""
    vectors, start = block
    ids, rankable = _rankable(users, start, vectors.shape[0], n_items)
    return ids, jnp.where(rankable[:, None], _dot("bmu,nu->bmn", users.vectors, vectors), -jnp.inf)


def _rankable(users: Users, start: Array, size: int, n_items: Array) -> tuple[Array, Array]:
    """ids [1, b] of one block and which of them may be ranked, [B or 1, b]."""
    ids = (start + jnp.arange(size, dtype=jnp.int32))[None]
    items = (ids > 0) & (ids <= n_items)
    if users.excluded is None:
        return ids, items
    place = users.excluded - start
    # A negative index would wrap around: everything outside the block goes past its end, where it is dropped.
    place = jnp.where(place < 0, size, place)
    items = jnp.broadcast_to(items, (len(place), size))
    return ids, items.at[jnp.arange(len(place))[:, None], place].set(False, mode="drop")


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
        return _add(totals, _products(users, block, table.n_items)[1]), None

    totals, _ = jax.lax.scan(add, jnp.full(users.mask.shape, -jnp.inf), (table.blocks, table.starts))
    return jnp.where(totals > -jnp.inf, totals, 0)  # where nothing may be ranked


def _add(totals: Float[Array, "B M"], products: Float[Array, "B M b"]) -> Float[Array, "B M"]:
    """Logs of sums of exponentials, with those of one more block."""
    return jnp.logaddexp(totals, jax.nn.logsumexp(products, axis=-1))


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
