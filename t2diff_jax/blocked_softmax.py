"""The full softmax for catalogues whose [targets, items] matrix does not fit: sums over blocks of items.

Forward, the log of the sum of e^score runs along the blocks (Milakov & Gimelshein 2018, "Online normalizer calculation
for softmax"); backward, each block's scores are made again. No array grows with targets times items.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.seen import Seen


def blocked_log_totals(
    users: Float[Array, "Q M U"],
    table: Float[Array, "R U"],
    targets: Int[Array, " Q"],
    is_item: Bool[Array, " R"],
    seen: Seen | None,
    *,
    block: int,
    parts: int,
) -> Float[Array, "Q M"]:
    """log of the sum of e^<u, e_i> over all items but those behind the position (its target counts in any case).

    -inf where no item is left. Differentiable with respect to users and table.

    block: rows scored at a time (rounded up to a multiple of `parts`).
    parts: a divisor of R. Each of so many equal parts of the table is scanned for itself, a share of every block from
      each: where the rows of a table lie on several devices, and their number divides `parts`, no row has to move.
    """
    return _log_totals(-(-block // parts), parts, users, table, targets, is_item, seen)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_totals(size: int, parts: int, *arrays: Array | Seen | None) -> Array:
    return _forward(size, parts, *arrays)[0]


def _forward(
    size: int, parts: int, users: Array, table: Array, targets: Array, is_item: Array, seen: Seen | None
) -> tuple[Array, tuple]:
    blocks = _Blocks(size, parts, table, is_item)

    def add(i: Array, totals: Array) -> Array:
        logits = _logits(users, blocks, i, targets, seen)[0]
        return jnp.logaddexp(totals, jax.nn.logsumexp(logits, axis=-1))

    start = jnp.full((*users.shape[:2], parts), -jnp.inf)
    totals = jax.nn.logsumexp(jax.lax.fori_loop(0, blocks.count, add, start), axis=-1)
    return totals, (users, table, targets, is_item, seen, totals)


def _backward(size: int, parts: int, kept: tuple, cotangent: Array) -> tuple[Array | None, ...]:
    users, table, targets, is_item, seen, totals = kept
    blocks = _Blocks(size, parts, table, is_item)
    totals = jnp.where(totals > -jnp.inf, totals, 0)[..., None, None]

    def add(i: Array, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
        by_users, by_table = gradients
        logits, rows, start = _logits(users, blocks, i, targets, seen)
        flow = jnp.exp(logits - totals) * cotangent[..., None, None]
        by_users += jnp.einsum("qmpb,pbu->qmu", flow, rows, preferred_element_type=jnp.float32)
        own = jnp.einsum("qmpb,qmu->pbu", flow, users, preferred_element_type=jnp.float32)
        before = jax.lax.dynamic_slice_in_dim(by_table, start, blocks.size, axis=1)
        return by_users, jax.lax.dynamic_update_slice_in_dim(by_table, before + own, start, axis=1)

    start = jnp.zeros(users.shape), jnp.zeros((parts, table.shape[0] // parts, table.shape[1]))
    by_users, by_table = jax.lax.fori_loop(0, blocks.count, add, start)
    gradients = by_users.astype(users.dtype), by_table.reshape(table.shape).astype(table.dtype)
    return (*gradients, None, None, None)


_log_totals.defvjp(_forward, _backward)


class _Blocks:
    """The table as [parts, rows of a part, U]. A block is a slice of all parts; the last reaches back to be full."""

    def __init__(self, size: int, parts: int, table: Array, is_item: Array):
        self._table, self._is_item = table.reshape(parts, -1, table.shape[1]), is_item.reshape(parts, -1)
        self.rows = self._table.shape[1]
        self.parts, self.size = parts, min(size, self.rows)
        self.count = -(-self.rows // self.size)

    def cut(self, i: Array) -> tuple[Array, Array, Array, Array]:
        """First row in a part, vectors [parts, size, U], ids and whether a row counts in this block [parts, size]."""
        start = jnp.minimum(i * self.size, self.rows - self.size)
        rows, is_item = (
            jax.lax.dynamic_slice_in_dim(a, start, self.size, axis=1) for a in (self._table, self._is_item)
        )
        place = start + jnp.arange(self.size)
        ids = jnp.arange(self.parts)[:, None] * self.rows + place[None]
        return start, rows, ids, is_item & (place >= i * self.size)[None]


def _logits(users: Array, blocks: _Blocks, i: Array, targets: Array, seen: Seen | None) -> tuple[Array, Array, Array]:
    """Scores [Q, M, parts, size] of block i, -inf for what does not count; its vectors; its first row in a part."""
    start, rows, ids, counts = blocks.cut(i)
    logits = jnp.einsum("qmu,pbu->qmpb", users, rows, preferred_element_type=jnp.float32)
    counts = counts[None]
    if seen is not None:
        first = seen.first_in_block(start, blocks.size, blocks.parts, blocks.rows)
        unseen = first[seen.window] > seen.place[:, None, None]
        counts = counts & (unseen | (ids[None] == targets[:, None, None]))
    return jnp.where(counts[:, None], logits, -jnp.inf), rows, start
