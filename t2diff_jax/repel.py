"""What keeps the several vectors of a user apart: a mean per user over pairs of those that count, 0 where none is."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t2diff_jax.nn.towers import unit


def squared_cosine(vectors: Float[Array, "*Q K D"], active: Bool[Array, "*Q K"]) -> Float[Array, " *Q"]:
    """Mean squared cosine between two of them."""
    return _over_pairs(jnp.square(_cosines(vectors)), active)


def squared_correlation(vectors: Float[Array, "*Q K D"], active: Bool[Array, "*Q K"]) -> Float[Array, " *Q"]:
    """Mean squared correlation over the D dimensions: |corr(V) - I|_F^2 but for the number of pairs."""
    return squared_cosine(vectors - vectors.mean(axis=-1, keepdims=True), active)


def near(vectors: Float[Array, "*Q K D"], active: Bool[Array, "*Q K"], margin: float) -> Float[Array, " *Q"]:
    """Mean squared hinge max(0, margin - |v_k - v_l|)^2 of their directions, so of distances from 0 to 2."""
    directions = unit(vectors)
    square = jnp.square(directions[..., :, None, :] - directions[..., None, :, :]).sum(axis=-1)
    distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return _over_pairs(jnp.square(jnp.maximum(margin - distance, 0)), active)


def alike(vectors: Float[Array, "*Q K D"], active: Bool[Array, "*Q K"], margin: float) -> Float[Array, " *Q"]:
    """Mean hinge max(0, cos(v_k, v_l) - margin)."""
    return _over_pairs(jnp.maximum(_cosines(vectors) - margin, 0), active)


def _cosines(vectors: Array) -> Array:
    directions = unit(vectors)
    return jnp.einsum("...kd,...ld->...kl", directions, directions)


def _over_pairs(values: Array, active: Array) -> Array:
    others = jnp.broadcast_to(~jnp.eye(active.shape[-1], dtype=bool), values.shape)
    pairs = active[..., :, None] & active[..., None, :] & others
    return jnp.where(pairs, values, 0).sum(axis=(-1, -2)) / jnp.maximum(pairs.sum(axis=(-1, -2)), 1)
