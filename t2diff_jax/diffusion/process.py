"""The forward process, its posterior, and the drift that is diffused (T2Diff section 4.2, eqs. 3, 5, 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t2diff_jax.diffusion.schedule import Schedule


def drift(history: Float[Array, "B L D"], target: Float[Array, "B D"]) -> Float[Array, "B L D"]:
    """z_0 = X_{2:n+1} - X_{1:n}: from every behaviour to the next one, the last one to the target."""
    following = jnp.concatenate([history[:, 1:], target[:, None]], axis=1)
    return following - history


def q_sample(
    schedule: Schedule, z0: Float[Array, "B L D"], r: Int[Array, "#B *P"], noise: Float[Array, "B L D"]
) -> Float[Array, "B L D"]:
    """z_r = sqrt(abar_r) z_0 + sqrt(1 - abar_r) eps (3); r in 0..T, of windows [B] or positions [B, L]; r = 0: z_0."""
    abar = schedule.abar[r].reshape(*r.shape, *(1,) * (3 - r.ndim))
    return jnp.sqrt(abar) * z0 + jnp.sqrt(1 - abar) * noise


def posterior(
    schedule: Schedule, z0: Float[Array, "B L D"], z_r: Float[Array, "B L D"], r: Int[Array, "#B"]
) -> tuple[Float[Array, "B L D"], Float[Array, "#B 1 1"]]:
    """Mean (5) and variance (6) of q(z_{r-1} | z_r, z_0); r in 1..T. At r = 1 that is z_0 itself, variance 0."""
    beta, alpha, abar = (a[r][:, None, None] for a in schedule)
    abar_previous = schedule.abar[r - 1][:, None, None]
    from_z0 = jnp.sqrt(abar_previous) * beta / (1 - abar)
    from_zr = jnp.sqrt(alpha) * (1 - abar_previous) / (1 - abar)
    return from_z0 * z0 + from_zr * z_r, (1 - abar_previous) / (1 - abar) * beta
