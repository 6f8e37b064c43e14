"""The estimator's last part where every position is denoised by itself: a small network of (z_r, r, condition)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t2diff_jax.nn.unet import step_embedding


class Denoiser(nn.Module):
    """zhat_0 of each position from its z_r, its r and what is known there; no position sees another.

    Residual blocks whose input is shifted by condition and step. What is known is encoded beforehand, once for all r
    and all draws, so that a call of the reverse process costs no more than this network (as the per-token diffusion of
    Li et al. 2024, "Autoregressive image generation without vector quantization").

    Attributes:
      features: D, width of the drift.
      hidden, blocks: width and number of the residual blocks.
      step_dim: width of the step embedding.
    """

    features: int
    hidden: int
    blocks: int
    step_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, z: Float[Array, "B P D"], r: Int[Array, "#B #P"], condition: Float[Array, "B P C"]
    ) -> Float[Array, "B P D"]:
        """Estimate of z_0, float32."""

        def dense(name: str) -> nn.Dense:
            return nn.Dense(self.hidden, dtype=self.dtype, name=name)

        step = nn.swish(dense("step_in")(step_embedding(r, self.step_dim)))
        shift = dense("condition")(condition) + dense("step")(step)
        x = dense("drift")(z)
        for i in range(self.blocks):
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x) + shift
            x = x + dense(f"block_{i}")(nn.swish(h))
        x = nn.swish(nn.LayerNorm(dtype=self.dtype, name="norm")(x) + shift)
        return nn.Dense(self.features, dtype=jnp.float32, name="out")(x)
