"""ComiRec (Cen et al. 2020): interests by self-attention, or by dynamic routing with a map per place and interest."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.interests import InterestNet
from t2diff_jax.models.visible import latest
from t2diff_jax.nn.attention import masked_softmax
from t2diff_jax.nn.capsules import route
from t2diff_jax.types import Batch


class ComiRecSANet(InterestNet):
    """V = softmax(W2 tanh(W1 (H + positions))) H, at every place over what it sees."""

    def make_encoder(self) -> nn.Module:
        """The attention."""
        m = self.model
        return InterestAttention(m.interests.number, m.hidden, m.dropout, jnp.dtype(m.dtype))

    def interests(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[B, L, K, D]."""
        return self.encoder(x, latest(batch, self.model.interests.last), deterministic=deterministic)


class InterestAttention(nn.Module):
    """How much each of K interests makes of a behaviour does not depend on the place that asks, but for the sum."""

    number: int
    hidden: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, sees: jax.Array, *, deterministic: bool) -> jax.Array:
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        h = (x + positions[None]).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        inner = jnp.tanh(nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, name="hidden")(h))
        logits = nn.Dense(self.number, use_bias=False, dtype=self.dtype, name="score")(inner)
        shares = masked_softmax(logits.transpose(0, 2, 1)[:, None], sees[:, :, None])  # [B, P, K, L]
        return jnp.einsum("bpkl,bld->bpkd", shares.astype(self.dtype), h)


class ComiRecDRNet(InterestNet):
    """A behaviour votes for an interest by a map of its place in the window and of the interest."""

    def make_encoder(self) -> nn.Module:
        """The routing."""
        m = self.model
        return InterestRouting(m.interests.number, m.interests.iterations, m.dropout)

    def interests(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[B, L, K, D]."""
        sees = latest(batch, self.model.interests.last)
        return self.encoder(x, sees, self.active(batch), deterministic=deterministic)


class InterestRouting(nn.Module):
    """The maps, [L, K, D, D], tell the interests apart: routing starts from zero."""

    number: int
    iterations: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, sees: jax.Array, active: jax.Array, *, deterministic: bool) -> jax.Array:
        length, width = x.shape[1:]
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        init = nn.initializers.lecun_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        maps = self.param("maps", init, (length, self.number, width, width))
        votes = jnp.einsum("bld,lkde->blke", x, maps)
        return route(votes, jnp.zeros((1, length, length, self.number)), sees, active, self.iterations)
