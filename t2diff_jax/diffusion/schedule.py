"""Noise schedules: beta_r for r = 1..T and what follows from it (T2Diff section 4.2, eq. 3)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# A reverse process that starts from N(0, I) is only right if q(z_T) is close to it.
_LARGEST_FINAL_ABAR = 9.9e-4


class Schedule(NamedTuple):
    """beta, alpha = 1 - beta and abar = prod alpha, float32 [T + 1] each; index 0 is "no noise" (beta 0, abar 1)."""

    beta: Float[Array, " T1"]
    alpha: Float[Array, " T1"]
    abar: Float[Array, " T1"]

    @property
    def steps(self) -> int:
        """T."""
        return self.beta.shape[0] - 1


def make_schedule(name: str, *, steps: int, scale: float, rate: float) -> Schedule:
    """The schedule `name` with `steps` steps.

    exponential (the paper's): beta_s = scale * exp(rate * s / T). linear and logarithmic run between the same end
    points, linear in s and in log s: the paper names them without a formula. Where the product of the alphas does not
    end below 1e-3 (few steps), every alpha is raised to one common power so that it does.

    Raises:
      ValueError: unknown name, or a beta outside (0, 1).
    """
    s = np.arange(1, steps + 1) / steps
    first, last = scale * np.exp(rate / steps), scale * np.exp(rate)
    if name == "exponential":
        beta = scale * np.exp(rate * s)
    elif name == "linear":
        beta = np.linspace(first, last, steps)
    elif name == "logarithmic":
        ramp = np.log1p(np.arange(steps)) / max(np.log(steps), 1e-12)
        beta = first + (last - first) * ramp
    else:
        raise ValueError(f"unknown schedule {name!r}: exponential, linear or logarithmic")
    if not (beta.min() > 0 and beta.max() < 1):
        raise ValueError(f"{name} schedule: beta spans [{beta.min():.3g}, {beta.max():.3g}], outside (0, 1)")
    log_alpha = np.log1p(-beta)
    log_alpha *= max(1.0, np.log(_LARGEST_FINAL_ABAR) / log_alpha.sum())
    log_alpha = np.concatenate([[0.0], log_alpha])
    return Schedule(
        beta=jnp.asarray(-np.expm1(log_alpha), jnp.float32),
        alpha=jnp.asarray(np.exp(log_alpha), jnp.float32),
        abar=jnp.asarray(np.exp(np.cumsum(log_alpha)), jnp.float32),
    )
