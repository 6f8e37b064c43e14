"""HSTU (Zhai et al. 2024): attention without a softmax, weighed by relative positions and times, gated."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.sequential import SequentialNet
from t2diff_jax.models.visible import causal_mask, seconds_to_request
from t2diff_jax.nn.attention import lag_bucket
from t2diff_jax.types import LAG_BUCKETS, Batch


class HSTUNet(SequentialNet):
    """`model.layers` layers of `model.heads` heads; times enter where the batch has them."""

    def make_encoder(self) -> nn.Module:
        """Takes a mask and seconds in place of what is valid: see `encode`."""
        m = self.model
        return HSTUEncoder(m.layers, m.heads, m.dropout, self.sizes.window, self.sizes.lags, jnp.dtype(m.dtype))

    def encode(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """States [B, L, D]."""
        seconds = seconds_to_request(batch) if self.sizes.lags else None
        return self.encoder(x, causal_mask(batch), seconds, deterministic=deterministic)


class HSTUEncoder(nn.Module):
    """x + f2(norm(A V) * U) per layer, with U, V, Q, K = silu(f1(norm(x))) and A = silu(Q K' + bias) / n; a last norm.

    n is the number of behaviours that a place sees: weights are not normed against each other, so how many alike there
    are is not lost. Learned positions, counted from the window's end, are added to the inputs, whatever
    `model.positions` says. f1 is four maps: as one it would be orthogonalised as one matrix by Muon.
    """

    layers: int
    heads: int
    dropout: float
    window: int
    lags: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, seconds: jax.Array | None, *, deterministic: bool) -> jax.Array:
        drop, (_, length, width) = nn.Dropout(self.dropout, deterministic=deterministic), x.shape
        count = jnp.maximum(mask.sum(axis=-1), 1)[:, :, None].astype(self.dtype)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.window, width))
        x = drop(x + positions[None].astype(x.dtype))
        for i in range(self.layers):
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x)
            gate, *parts = (
                nn.silu(nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"{name}_{i}")(h))
                for name in ("gate", "value", "query", "key")
            )
            v, q, k = (part.reshape(*part.shape[:2], self.heads, -1) for part in parts)
            weights = jnp.einsum("bphe,blhe->bhpl", q, k) + self._bias(i, length, seconds)
            weights = jnp.where(mask[:, None], nn.silu(weights), 0)
            mixed = jnp.einsum("bhpl,blhe->bphe", weights, v).reshape(x.shape) / count
            mixed = nn.LayerNorm(dtype=self.dtype, name=f"norm_mixed_{i}")(mixed)
            x = x + nn.Dense(width, dtype=self.dtype, name=f"out_{i}")(drop(mixed * gate))
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)

    def _bias(self, layer: int, length: int, seconds: jax.Array | None) -> jax.Array:
        """By the distance in places and, where there are times, by log2 seconds to the request; [B or 1, 1, P, L]."""
        by_distance = self.param(f"by_distance_{layer}", nn.initializers.normal(0.02), (self.window,))
        distance = jnp.arange(length)[:, None] - jnp.arange(length)[None]
        bias = by_distance[jnp.clip(distance, 0, self.window - 1)][None, None]
        if seconds is not None:
            by_lag = self.param(f"by_lag_{layer}", nn.initializers.normal(0.02), (LAG_BUCKETS,))
            bias = bias + by_lag[lag_bucket(seconds)][:, None]
        return bias.astype(self.dtype)
