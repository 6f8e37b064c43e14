"""Losses: softmax cross-entropy over the catalogue, full or sampled (24), and the diffusion loss (23)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.blocked_softmax import blocked_log_totals
from t2diff_jax.seen import Seen


def full_softmax(
    users: Float[Array, "Q M U"],
    table: Float[Array, "R U"],
    targets: Int[Array, " Q"],
    allowed: Bool[Array, "#Q R"],
    *,
    label_smoothing: float,
    merge: str,
) -> Float[Array, " Q"]:
    """-log of the target's probability (24): softmax of <e_u, e_i> over the allowed items, float32 [Q].

    `merge` says how the M vectors of a user speak together (`mixture`). Label smoothing, for M = 1, spreads its share
    evenly over the allowed items. A target that is not among them gives +inf.
    """
    logits = jnp.einsum("qmu,ru->qmr", users, table, preferred_element_type=jnp.float32)
    # By itself, not out of the logits: the way back would put a [Q, M, R] array together from one place a row.
    positive = _target_scores(users, table, targets)
    if merge == "max":
        logits, positive = (a.max(axis=1, keepdims=True) for a in (logits, positive))
    logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    possible = jnp.take_along_axis(jnp.broadcast_to(allowed, (len(users), len(table))), targets[:, None], axis=1)
    positive = jnp.where(possible, positive, -jnp.inf)
    if label_smoothing:
        mean = jnp.where(allowed[:, None], logits, 0).sum(axis=-1) / allowed.sum(axis=-1, keepdims=True)
        positive = (1 - label_smoothing) * positive + label_smoothing * mean
    return mixture(positive, jax.nn.logsumexp(logits, axis=-1), merge)


def _target_scores(users: Array, table: Array, targets: Array) -> Array:
    return jnp.einsum("qmu,qu->qm", users, table[targets], preferred_element_type=jnp.float32)


def mixture(positives: Float[Array, "*Q M"], log_totals: Float[Array, "*Q M"], merge: str) -> Float[Array, "*Q"]:
    """-log of the target's probability under M vectors of one user; +inf where no score of the target is finite.

    positives: score of the target with each vector; log_totals: log of the sum of e^score over its candidates.
    merge: "softmax_mean": the mean of the M softmaxes, all of equal weight. "logsumexp": the softmax of
      log sum_m e^<u_m, e_i>, in which a vector weighs as much as its sum over the candidates. "max": M = 1, since
      every item has already been scored by the vector that likes it best.
    """
    possible = (positives > -jnp.inf).any(axis=-1)
    # Elsewhere the gradient of what is masked later would be NaN.
    positives, log_totals = (jnp.where(possible[..., None], a, 0) for a in (positives, log_totals))
    if merge == "softmax_mean":
        loss = jnp.log(positives.shape[-1]) - jax.nn.logsumexp(positives - log_totals, axis=-1)
    else:
        loss = jax.nn.logsumexp(log_totals, axis=-1) - jax.nn.logsumexp(positives, axis=-1)
    return jnp.where(possible, loss, jnp.inf)


def mean_full_softmax(
    users: Float[Array, "Q M U"],
    table: Float[Array, "R U"],
    targets: Int[Array, " Q"],
    is_item: Bool[Array, " R"],
    weights: Float[Array, " Q"],
    seen: Seen | None = None,
    *,
    label_smoothing: float,
    merge: str,
    chunk: int,
    block: int = 0,
    parts: int = 1,
) -> Float[Array, ""]:
    """Weighted mean of `full_softmax` over all items, or over all but those seen; float32 scalar.

    A target of weight 0 has no influence.

    With a positive `block`, so many items are scored at a time (`blocked_softmax`, there also `parts`), for catalogues
    whose [Q, R] matrix does not fit; without label smoothing.

    With a positive `chunk`, so many targets are scored at a time: no [Q, R] matrix is kept, and chunks of weight 0 (the
    padding of the windows) are left out. The gradient is made in the forward pass, chunk by chunk. That is for one
    device: where targets are spread over several, score all at once (chunk 0).
    """
    if block:
        totals = blocked_log_totals(users, table, targets, is_item, seen, block=block, parts=parts)
        positives = _target_scores(users, table, targets)
        positives = jnp.where(is_item[targets][:, None], positives, -jnp.inf)
        return weighted_mean(mixture(positives, totals, merge), weights)
    softmax = functools.partial(full_softmax, label_smoothing=label_smoothing, merge=merge)
    first = None if seen is None else seen.first(len(table))
    if chunk == 0:
        allowed = is_item[None] if seen is None else seen.allowed(first, is_item, targets)
        return weighted_mean(softmax(users, table, targets, allowed), weights)
    total = _sum_in_chunks(softmax, chunk, users, table, targets, is_item, weights, seen, first)
    return total / jnp.maximum(weights.sum(), 1e-9)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_in_chunks(softmax: Callable[..., Array], chunk: int, *arrays: Array | Seen | None) -> Array:
    return _sum_and_gradient(softmax, chunk, *arrays)[0]


def _sum_and_gradient(
    softmax: Callable[..., Array],
    chunk: int,
    users: Array,
    table: Array,
    targets: Array,
    is_item: Array,
    weights: Array,
    seen: Seen | None,
    first: Array | None,
) -> tuple[Array, tuple[Array, Array]]:
    """The weighted sum, and its gradient with respect to users and table."""
    order = jnp.argsort(weights == 0, stable=True)

    def cut(x: Array) -> Array:
        padding = ((0, -len(x) % chunk),) + ((0, 0),) * (x.ndim - 1)
        return jnp.pad(x[order], padding).reshape(-1, chunk, *x.shape[1:])

    def step(total: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        users, targets, weights, *behind = part

        def loss(users: Array, table: Array) -> Array:
            allowed = is_item[None]
            if seen is not None:
                allowed = Seen(seen.history, *behind).allowed(first, is_item, targets)
            return jnp.where(weights > 0, weights * softmax(users, table, targets, allowed), 0).sum()

        def nothing(users: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
            return jnp.zeros(()), (jnp.zeros_like(users), jnp.zeros_like(table))

        work = jax.value_and_grad(loss, argnums=(0, 1))
        value, (by_users, by_table) = jax.lax.cond((weights > 0).any(), work, nothing, users, table)
        return (total[0] + value, total[1] + by_table), by_users

    behind = () if seen is None else (seen.window, seen.place)
    parts = tuple(map(cut, (users, targets, weights, *behind)))
    (total, by_table), by_users = jax.lax.scan(step, (jnp.zeros(()), jnp.zeros_like(table)), parts)
    by_users = by_users.reshape(-1, *users.shape[1:])[: len(users)]
    return total, (jnp.zeros_like(users).at[order].set(by_users), by_table)


def _scaled(
    _softmax: Callable[..., Array], _chunk: int, gradient: tuple[Array, Array], cotangent: Array
) -> tuple[Array | None, ...]:
    return (*(cotangent * g for g in gradient), None, None, None, None, None)


_sum_in_chunks.defvjp(_sum_and_gradient, _scaled)


def sampled_softmax(
    users: Float[Array, "B P M U"],
    positives: Float[Array, "B P U"],
    negatives: Float[Array, "n U"],
    targets: Int[Array, "B P"],
    negative_ids: Int[Array, " n"],
    log_counts: Float[Array, " n"],
    own: Float[Array, "B L U"] | None = None,
    own_ids: Int[Array, "B L"] | None = None,
    seen: Int[Array, "B S"] | None = None,
    *,
    merge: str,
) -> Float[Array, "B P"]:
    """Softmax cross-entropy against n shared negatives drawn with replacement, float32 [B, P].

    A negative enters as s - log E[how often it is drawn], the positive uncorrected (logQ); a negative that is the row's
    own target, or no item (id 0), is masked. Items in `own_ids` (0: none), vectors `own`, are certain negatives of
    their row: each enters once, uncorrected, and leaves the shared negatives of that row, so that the sum stays an
    unbiased estimate.
    With `seen`, behaviours whose last P places the targets follow, what lies behind a position is no negative of it.
    `merge` says how the M vectors of a user speak together (`mixture`).
    """
    positive = jnp.einsum("bpmu,bpu->bpm", users, positives, preferred_element_type=jnp.float32)
    shared = jnp.einsum("bpmu,nu->bpmn", users, negatives, preferred_element_type=jnp.float32)
    shared = shared - log_counts[None, None, None]
    hidden = (targets[..., None] == negative_ids[None, None]) | (negative_ids == 0)[None, None]
    logits = [positive[..., None]]
    if seen is not None:
        places = jnp.arange(seen.shape[1])[-users.shape[1] :, None]
        hidden |= jax.vmap(first_places, (0, None))(seen, negative_ids)[:, None] <= places[None]
    if own_ids is not None:
        hidden |= (own_ids[..., None] == negative_ids[None, None]).any(axis=1)[:, None]
        certain = jnp.einsum("bpmu,blu->bpml", users, own, preferred_element_type=jnp.float32)
        counts = (first_occurrence(own_ids) & (own_ids > 0))[:, None] & (own_ids[:, None] != targets[..., None])
        if seen is not None:
            counts &= jax.vmap(first_places)(seen, own_ids)[:, None] > places[None]
        logits.append(jnp.where(counts[:, :, None], certain, -jnp.inf))
    logits.append(jnp.where(hidden[:, :, None], -jnp.inf, shared))
    if merge == "max":
        positive, *logits = (a.max(axis=2, keepdims=True) for a in (positive, *logits))
    return mixture(positive, jax.nn.logsumexp(jnp.concatenate(logits, axis=-1), axis=-1), merge)


def first_occurrence(ids: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """True where an id appears for the first time in its row."""
    earlier = jnp.tri(ids.shape[1], k=-1, dtype=bool)
    return ~((ids[:, :, None] == ids[:, None, :]) & earlier[None]).any(axis=-1)


def first_places(ids: Int[Array, " L"], wanted: Int[Array, " m"]) -> Int[Array, " m"]:
    """Where an id first appears; L where it does not."""
    order = jnp.argsort(ids, stable=True)
    at = jnp.searchsorted(ids[order], wanted)  # of equal ids the first, which lies first of them in `order` too
    return jnp.where(ids[order].at[at].get(mode="fill", fill_value=-1) == wanted, order[at], len(ids))


def diffusion_loss(
    drift: Float[Array, "B L D"], estimate: Float[Array, "B L D"], mask: Bool[Array, "B L"]
) -> Float[Array, " B"]:
    """||z_0 - zhat_0||^2 (23), mean over valid positions and width, float32 [B]; 0 for a window without any."""
    return position_mean(jnp.square(drift - estimate).mean(axis=-1), mask)


def divergence_from_normal(mean: Float[Array, "*Q D"], log_variance: Float[Array, "*Q D"]) -> Float[Array, "*Q"]:
    """Kullback-Leibler divergence of a diagonal Gaussian from N(0, I), mean over the width."""
    return (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean(axis=-1) / 2


def position_mean(values: Float[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, " B"]:
    """Mean over the valid positions of each window; 0 for a window without any."""
    return jnp.where(mask, values, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def weighted_mean(values: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, ""]:
    """Mean over the places of positive weight; a value at weight 0 has no influence, not even a non-finite one."""
    return jnp.where(weights > 0, values * weights, 0).sum() / jnp.maximum(weights.sum(), 1e-9)
