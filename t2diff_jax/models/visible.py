"""Which behaviours each place of a window may see, and means over them."""

import jax
import jax.numpy as jnp

from t2diff_jax.config import ModelConfig
from t2diff_jax.types import Batch


def causal_mask(batch: Batch) -> jax.Array:
    """Those that are there, up to the place itself; bool [B, L, L]."""
    valid = batch["history"] > 0
    return jnp.tri(valid.shape[1], dtype=bool)[None] & valid[:, None, :]


def past_and_session(model: ModelConfig, batch: Batch, first: int) -> tuple[jax.Array, jax.Array]:
    """What places first.. may see, bool [B, P, L]: all up to their own; those of the session that they end.

    A session is at most `model.session_length` behaviours, none behind a gap of more than `model.session_gap` seconds
    (0: no gap ends it).
    """
    place, gap = jnp.arange(batch["history"].shape[1]), model.session_gap
    distance = place[first:, None] - place[None]
    past = (distance >= 0)[None] & (batch["history"] > 0)[:, None]
    session = past & (distance < model.session_length)[None]
    if gap:
        age = batch["age"]
        breaks = jnp.pad(age[:, :-1] - age[:, 1:] > gap, ((0, 0), (1, 0)))
        part = jnp.cumsum(breaks, axis=1)
        session = session & (part[:, first:, None] == part[:, None])
    return past, session


def latest(batch: Batch, last: int) -> jax.Array:
    """The last so many of `causal_mask`, the place itself among them; 0: all of them. Bool [B, L, L]."""
    mask = causal_mask(batch)
    if not last:
        return mask
    place = jnp.arange(mask.shape[1])
    return mask & (place[:, None] - place[None] < last)[None]


def mean_of(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the vectors x [B, L, D] that each place sees, mask [B, P, L]; [B, P, D], zero where it sees none."""
    total = jnp.einsum("bpl,bld->bpd", mask.astype(x.dtype), x)
    return total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1).astype(x.dtype)
