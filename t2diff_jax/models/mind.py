"""MIND (Li et al. 2019): interests by dynamic routing with one bilinear map for all, at every place of the window."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax import rng
from t2diff_jax.models.interests import InterestNet
from t2diff_jax.models.visible import latest
from t2diff_jax.nn.capsules import route
from t2diff_jax.nn.towers import Tower
from t2diff_jax.types import Batch


class MINDNet(InterestNet):
    """A place that sees n behaviours has max(1, min(K, log2 n)) interests; each goes through one hidden layer."""

    def make_encoder(self) -> nn.Module:
        """The routing and what follows it."""
        m = self.model
        i, dtype = m.interests, jnp.dtype(m.dtype)
        return BehaviourToInterest(i.number, i.last, i.iterations, m.hidden, m.dropout, dtype)

    def interests(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[B, L, K, D]."""
        sees = latest(batch, self.model.interests.last)
        return self.encoder(x, sees, self.active(batch), deterministic=deterministic)

    def active(self, batch: Batch) -> jax.Array:
        """The first K_u of the K, bool [B, L, K]."""
        n = jnp.maximum(latest(batch, self.model.interests.last).sum(axis=-1), 1)
        # Exact for integers, which a rounded log2 is not.
        wanted = jnp.maximum(31 - jax.lax.clz(n.astype(jnp.int32)), 1)
        return jnp.arange(self.model.interests.number)[None, None] < wanted[..., None]


class BehaviourToInterest(nn.Module):
    """Votes S e_i, the same for all interests: fixed random first logits, by distance in places, tell these apart."""

    number: int
    last: int
    iterations: int
    hidden: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, sees: jax.Array, active: jax.Array, *, deterministic: bool) -> jax.Array:
        length, width = x.shape[1:]
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        votes = nn.Dense(width, use_bias=False, dtype=self.dtype, name="shared_map")(x).astype(jnp.float32)
        votes = jnp.broadcast_to(votes[:, :, None], (*votes.shape[:2], self.number, width))
        drawn = jax.random.normal(rng.stream(0, "routing"), (self.number, self.last or length)).T
        distance = jnp.clip(jnp.arange(length)[:, None] - jnp.arange(length)[None], 0, len(drawn) - 1)
        capsules = route(votes, drawn[distance][None], sees, active, self.iterations)
        tower = Tower(self.hidden, width, self.dropout, self.dtype, name="tower")
        return tower(capsules, deterministic=deterministic)
