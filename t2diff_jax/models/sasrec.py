"""SASRec (Kang & McAuley 2018): a causal transformer; with cross-entropy at every position, as in later work."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.sequential import SequentialNet
from t2diff_jax.models.visible import causal_mask
from t2diff_jax.nn.attention import TransformerEncoder
from t2diff_jax.types import Batch


class SASRecNet(SequentialNet):
    """`model.layers` pre-norm transformer blocks."""

    def make_encoder(self) -> nn.Module:
        """Takes a mask in place of what is valid: see `encode`."""
        m = self.model
        return TransformerEncoder(m.layers, m.heads, m.hidden, m.dropout, m.positions == "rotary", jnp.dtype(m.dtype))

    def encode(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """States [B, L, D]."""
        return self.encoder(x, causal_mask(batch), deterministic=deterministic)

    def encode_last(self, x: jax.Array, batch: Batch) -> jax.Array:
        """The last state, [B, 1, D]."""
        return self.encoder(x, causal_mask(batch), deterministic=True, last=1)
