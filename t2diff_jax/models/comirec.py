"""ComiRec (Cen et al. 2020): interests by self-attention, or by dynamic routing with a map per place and interest.

A place is counted from the behaviour that asks, so that those of the last request are the ones that all have learned.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.interests import InterestNet
from t2diff_jax.models.visible import latest
from t2diff_jax.nn.attention import masked_softmax
from t2diff_jax.nn.capsules import route
from t2diff_jax.types import Batch


class ComiRecSANet(InterestNet):
    """V = A H with A = softmax(W2 tanh(W1 (H + positions))), at every place over what it sees."""

    def make_encoder(self) -> nn.Module:
        """The attention."""
        m = self.model
        return InterestAttention(m.interests.number, m.interests.last, m.hidden, m.dropout, jnp.dtype(m.dtype))

    def interests(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[B, L, K, D]."""
        return self.encoder(x, latest(batch, self.model.interests.last), deterministic=deterministic)


class InterestAttention(nn.Module):
    """A of K interests; positions by distance, `last` of them (0: as many as the window has places)."""

    number: int
    last: int
    hidden: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, sees: jax.Array, *, deterministic: bool) -> jax.Array:
        length, width = x.shape[1:]
        positions = self.param("positions", nn.initializers.normal(0.02), (self.last or length, width))
        near, seen = near_of(x.astype(self.dtype), self.last), near_mask(sees, self.last)
        h = near + positions.astype(self.dtype)[None, None]
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        inner = jnp.tanh(nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, name="hidden")(h))
        logits = nn.Dense(self.number, use_bias=False, dtype=self.dtype, name="score")(inner)
        shares = masked_softmax(logits.swapaxes(-1, -2), seen[:, :, None])  # [B, P, K, last]
        return jnp.einsum("bpkn,bpnd->bpkd", shares.astype(self.dtype), near)


class ComiRecDRNet(InterestNet):
    """A behaviour votes for an interest by a map of its distance and of the interest."""

    def make_encoder(self) -> nn.Module:
        """The routing."""
        m = self.model
        return InterestRouting(m.interests.number, m.interests.last, m.interests.iterations, m.dropout)

    def interests(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[B, L, K, D]."""
        sees = latest(batch, self.model.interests.last)
        return self.encoder(x, sees, self.active(batch), deterministic=deterministic)


class InterestRouting(nn.Module):
    """The maps, [last, K, D, D], tell the interests apart: routing starts from zero."""

    number: int
    last: int
    iterations: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, sees: jax.Array, active: jax.Array, *, deterministic: bool) -> jax.Array:
        (batch, length, width), near = x.shape, self.last or x.shape[1]
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        init = nn.initializers.lecun_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        maps = self.param("maps", init, (near, self.number, width, width))
        votes = jnp.einsum("bpnd,nkde->bpnke", near_of(x, self.last), maps)
        # Every place routes for itself: as so many windows of one place each.
        flat = votes.reshape(batch * length, near, self.number, width)
        seen = near_mask(sees, self.last).reshape(batch * length, 1, near)
        start = jnp.zeros((1, 1, near, self.number))
        found = route(flat, start, seen, active.reshape(batch * length, 1, self.number), self.iterations)
        return found.reshape(batch, length, self.number, width)


def near_of(x: jax.Array, last: int) -> jax.Array:
    """The vectors x [B, L, D] at distances 0, 1, .. last - 1 before each place (0: L), [B, L, last, D]; 0 beyond."""
    length = x.shape[1]
    padded = jnp.pad(x, ((0, 0), ((last or length) - 1, 0), (0, 0)))
    return jnp.stack([padded[:, (last or length) - 1 - n :][:, :length] for n in range(last or length)], axis=2)


def near_mask(sees: jax.Array, last: int) -> jax.Array:
    """Which of the behaviours that `near_of` gives each place sees, bool [B, L, last]; sees: bool [B, L, L]."""
    length = sees.shape[1]
    place = jnp.arange(length)[:, None] - jnp.arange(last or length)[None]
    found = jnp.take_along_axis(sees, jnp.broadcast_to(jnp.maximum(place, 0), (len(sees), *place.shape)), axis=2)
    return found & (place >= 0)[None]
