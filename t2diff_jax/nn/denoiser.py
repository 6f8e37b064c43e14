"""Estimators at every position: a small network of (z_r, r, condition) at each, and DiffuRec's over the window."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.nn.attention import TransformerEncoder
from t2diff_jax.nn.unet import step_embedding


class Denoiser(nn.Module):
    """zhat_0 of each position from its z_r, its r and what is known there; no position sees another.

    Residual blocks whose input is shifted by condition and step. What is known is encoded beforehand, once for all r
    and all draws, so that a call of the reverse process costs no more than this network (as the per-token diffusion of
    Li et al. 2024, "Autoregressive image generation without vector quantization").

    Attributes:
      features: F, width of the output: D where z_0 is estimated.
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
    ) -> Float[Array, "B P F"]:
        """Estimate of z_0, or what else is to be said of z, float32."""

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


class WindowDenoiser(nn.Module):
    """DiffuRec's approximator (Li et al. 2023): a causal transformer over x_j + share_j (z_r[j] + step embedding).

    Attributes:
      features: D, width of an item.
      mixing: mean and standard deviation of the share.
      mapped: a linear map follows the encoder's last norm: a slot's item has the size that it needs. Published: none.
    """

    features: int
    layers: int
    heads: int
    hidden: int
    dropout: float
    rotary: bool
    step_dim: int
    mixing: float
    mapped: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "B L D"],
        r: Int[Array, "#B #L"],
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        share: Float[Array, "B L D"],
        *,
        deterministic: bool,
    ) -> Float[Array, "B L D"]:
        """Estimate of z_0, float32; share: standard normal, of which the shares are made."""
        step = nn.Dense(self.features, dtype=self.dtype, name="step")(step_embedding(r, self.step_dim))
        mixed = (x + self.mixing * (1 + share) * (z + step)) * mask[..., None]
        causal = jnp.tri(mask.shape[1], dtype=bool)[None] & mask[:, None, :]
        args = self.layers, self.heads, self.hidden, self.dropout, self.rotary, self.dtype
        states = TransformerEncoder(*args, name="encoder")(mixed, causal, deterministic=deterministic)
        if not self.mapped:
            return states.astype(jnp.float32)
        return nn.Dense(self.features, dtype=jnp.float32, name="out")(states)
