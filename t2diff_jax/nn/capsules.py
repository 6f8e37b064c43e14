"""Dynamic routing of behaviours to interests (Sabour et al. 2017; for users MIND, Li et al. 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t2diff_jax.nn.attention import masked_softmax


def squash(z: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """|z|^2 / (1 + |z|^2) z / |z|; 0 for a zero vector, with a finite gradient."""
    square = jnp.square(z).sum(axis=-1, keepdims=True)
    return z * square / (1 + square) * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def route(
    votes: Float[Array, "B L K D"],
    start: Float[Array, "#B P L K"],
    sees: Bool[Array, "B P L"],
    active: Bool[Array, "B P K"],
    iterations: int,
) -> Float[Array, "B P K D"]:
    """K interests of each of P places from the votes of the behaviours that it sees.

    Per iteration a behaviour spreads one unit over the active interests, w = softmax_k(b); an interest is the squashed
    sum of w times the votes; b grows by the product of vote and interest. Only the last iteration has a gradient. What
    is not active, or sees nothing, is zero.

    Routing is made for lengths about 1: longer votes would settle it after one iteration, and interests that are never
    longer than 1 would leave the scores of all items nearly alike. So it works on votes over sqrt(D), the length of
    normed vectors, and interests may become as long as these.

    start: the first b. Where the votes for all interests are alike it must differ between them, or they stay alike.
    """

    def interests(b: Array, votes: Array) -> Array:
        shares = masked_softmax(b, active[:, :, None]) * sees[..., None]
        return squash(jnp.einsum("bplk,blkd->bpkd", shares, votes))

    scale = votes.shape[-1] ** 0.5
    votes = votes / scale
    still = jax.lax.stop_gradient(votes)
    # Where the start is a constant the compiler would work out the first shares itself, which doubles its time.
    b = jnp.broadcast_to(jax.lax.optimization_barrier(start), (*sees.shape, votes.shape[2]))
    for _ in range(iterations - 1):
        b = b + jnp.einsum("bpkd,blkd->bplk", interests(b, still), still)
    return scale * interests(b, votes)
