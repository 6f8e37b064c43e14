"""Which behaviours each place of a window may see, how long before its request they lie, and means over them."""

import jax
import jax.numpy as jnp

from t2diff_jax.config import ModelConfig
from t2diff_jax.types import Batch


def latest(batch: Batch, last: int, first: int = 0) -> jax.Array:
    """The `last` behaviours up to each of the places first.., the place itself among them; 0: all. Bool [B, P, L]."""
    place = jnp.arange(batch["history"].shape[1])
    distance = place[first:, None] - place[None]
    near = (distance >= 0) & (distance < last) if last else distance >= 0
    return near[None] & (batch["history"] > 0)[:, None]


def causal_mask(batch: Batch) -> jax.Array:
    """All behaviours up to each place; bool [B, L, L]."""
    return latest(batch, 0)


def past_and_session(model: ModelConfig, batch: Batch, first: int) -> tuple[jax.Array, jax.Array]:
    """What places first.. may see, bool [B, P, L]: all up to their own; those of the session that they end.

    A session is at most `model.session_length` behaviours, none behind a gap of more than `model.session_gap` seconds
    (0: no gap ends it).
    """
    past, session, gap = latest(batch, 0, first), latest(batch, model.session_length, first), model.session_gap
    if gap:
        age = batch["age"]
        breaks = jnp.pad(age[:, :-1] - age[:, 1:] > gap, ((0, 0), (1, 0)))
        part = jnp.cumsum(breaks, axis=1)
        session = session & (part[:, first:, None] == part[:, None])
    return past, session


def seconds_to_request(batch: Batch, first: int = 0) -> jax.Array:
    """From each behaviour to the requests of places first.., int32 [B, P, L]; those of later behaviours are negative.

    The request of a place is what came next, that of the last one the batch's own.
    """
    age = batch["age"]
    request = jnp.pad(age[:, 1:], ((0, 0), (0, 1)))[:, first:]
    return age[:, None] - request[..., None]


def mean_of(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the vectors x [B, L, D] that each place sees, mask [B, P, L]; [B, P, D], zero where it sees none."""
    total = jnp.einsum("bpl,bld->bpd", mask.astype(x.dtype), x)
    return total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1).astype(x.dtype)
