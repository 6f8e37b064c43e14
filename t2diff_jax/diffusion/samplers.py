"""The reverse process: ancestral DDPM (T2Diff algorithm 2) and deterministic DDIM (Song et al. 2021, eta = 0)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.diffusion.process import posterior, q_sample
from t2diff_jax.diffusion.schedule import Schedule

Estimate = Callable[[Array, Array], Array]  # (z_r [B, L, D], r [1]) -> estimate of z_0 [B, L, D]
Noise = Callable[[Array], Array]  # r (scalar) -> standard normal [B, L, D], the same for the same r


class Known(NamedTuple):
    """Positions whose z_0 is known beforehand: there every z_r is the forward-noised truth."""

    mask: Bool[Array, "#B L 1"]
    z0: Float[Array, "B L D"]


def sampling_steps(steps: int, calls: int) -> np.ndarray:
    """The r of each estimator call, descending from T, int32 [calls]; evenly spaced, the last one leads to r = 0."""
    if not 1 <= calls <= steps:
        raise ValueError(f"{calls} sampler calls: must be in 1..{steps}")
    return np.round(np.linspace(steps, 0, calls + 1)).astype(np.int32)[:-1]


def ddpm(schedule: Schedule, estimate: Estimate, noise: Noise, known: Known | None = None) -> Float[Array, "B L D"]:
    """Ancestral sampling, T calls: z_{r-1} ~ N(mu~(z_r, zhat_0), btilde_r I) for r = T..1; the last adds no noise."""

    def step(z: Array, r: Array) -> tuple[Array, None]:
        at = r[None]
        mean, variance = posterior(schedule, estimate(z, at), z, at)
        z = mean + jnp.sqrt(variance) * noise(r)
        return _hold(schedule, z, r - 1, known, noise), None

    return _run(schedule, step, sampling_steps(schedule.steps, schedule.steps), known, noise)


def ddim(
    schedule: Schedule, estimate: Estimate, noise: Noise, calls: int, known: Known | None = None
) -> Float[Array, "B L D"]:
    """Deterministic sampling in `calls` calls; one call is the estimate from pure noise."""
    r = sampling_steps(schedule.steps, calls)

    def step(z: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        now, following = (p[None] for p in pair)
        z0 = estimate(z, now)
        abar = schedule.abar[now][:, None, None]
        eps = (z - jnp.sqrt(abar) * z0) / jnp.sqrt(1 - abar)
        z = q_sample(schedule, z0, following, eps)
        return _hold(schedule, z, pair[1], known, noise), None

    return _run(schedule, step, (r, np.append(r[1:], 0).astype(np.int32)), known, noise)


def _run(schedule: Schedule, step: Callable, steps: object, known: Known | None, noise: Noise) -> Array:
    top = jnp.int32(schedule.steps)
    # r = T + 1 names the starting noise: every r in 1..T is a stream of its own.
    z = _hold(schedule, noise(top + 1), top, known, noise)
    z, _ = jax.lax.scan(step, z, jax.tree.map(jnp.asarray, steps))
    return z


def _hold(schedule: Schedule, z: Array, r: Int[Array, ""], known: Known | None, noise: Noise) -> Array:
    """Puts the forward-noised truth into the known positions. One fixed noise: each z_r has the right marginal."""
    if known is None:
        return z
    truth = q_sample(schedule, known.z0, r[None], noise(jnp.int32(schedule.steps) + 2))
    return jnp.where(known.mask, truth, z)
