"""STOSA (Fan et al. 2022): items are Gaussians, attention and ranking go by their 2-Wasserstein distance.

Between N(m, diag(s)) and N(n, diag(t)) that is |m - n|^2 + |sqrt s - sqrt t|^2: the squared distance of two points
y = [m ; sqrt s]. As a score, -|x - y|^2 ranks as the inner product of [2 x ; 1] and [y ; -|y|^2], so the common scan
serves. Learned by the softmax over these scores, as every model here, where the publication draws one negative and also
asks that it be further from the positive than the user is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.objective import item_embedding
from t2diff_jax.models.sequential import SequentialNet
from t2diff_jax.models.visible import causal_mask
from t2diff_jax.nn.attention import masked_softmax, rotate
from t2diff_jax.types import Batch, Catalogue


class STOSANet(SequentialNet):
    """e(i) is a mean and what becomes a deviation, [..., 2 D]; `model.layers` blocks work on both."""

    def setup(self) -> None:
        super().setup()
        self.spreads = item_embedding(self.model, self.sizes)
        self.spread_norm = nn.LayerNorm(dtype=jnp.dtype(self.model.dtype))

    def make_encoder(self) -> nn.Module:
        """Takes a mask in place of what is valid, and both halves: see `user`."""
        m = self.model
        return WassersteinEncoder(m.layers, m.heads, m.hidden, m.dropout, m.positions == "rotary", jnp.dtype(m.dtype))

    def item_table(self, catalogue: Catalogue) -> jax.Array:
        """e(i) of every row, [R, 2 D]."""
        return jnp.concatenate([self.items.table(catalogue), self.spreads.table(catalogue)], axis=-1)

    def embed(self, ids: jax.Array, catalogue: Catalogue) -> jax.Array:
        """e(i), [..., 2 D]."""
        return jnp.concatenate([self.items(ids, catalogue), self.spreads(ids, catalogue)], axis=-1)

    def scored(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """[y ; -|y|^2], [..., 2 D + 1]."""
        mean, spread = jnp.split(e, 2, axis=-1)
        y = _point(mean, spread)
        return jnp.concatenate([y, -jnp.square(y).sum(axis=-1, keepdims=True)], axis=-1)

    def user(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[2 y ; 1] of the state after every behaviour, float32 [B, L, 1, U]."""
        x = self.behaviour_dropout(x, batch["history"], deterministic=deterministic)
        return self._users(x, batch, deterministic=deterministic, last=0)

    def last_user(self, x: jax.Array, batch: Batch) -> jax.Array:
        """Of these the last, [B, 1, 1, U]."""
        return self._users(x, batch, deterministic=True, last=1)

    def _users(self, x: jax.Array, batch: Batch, *, deterministic: bool, last: int) -> jax.Array:
        mean, spread = jnp.split(x, 2, axis=-1)
        parts = self.item_norm(mean), self.spread_norm(spread)
        mean, spread = self.encoder(*parts, causal_mask(batch), deterministic=deterministic, last=last)
        mean = mean.astype(jnp.float32)
        if self.sizes.user_features:
            mean = mean + self.user_out(self.users(batch["user_features"]))[:, None]
        y = _point(mean, spread.astype(jnp.float32))
        users = jnp.concatenate([2 * y, jnp.ones_like(y[..., :1])], axis=-1)
        return self.with_sketch(users[:, :, None], x, batch, deterministic=deterministic)


class WassersteinEncoder(nn.Module):
    """Pre-norm blocks on means and spreads. A place is a weighted sum of Gaussians: variances add by squared shares.

    With a positive `last` the states of so many places, the last ones: the last block computes no others.
    """

    layers: int
    heads: int
    hidden: int
    dropout: float
    rotary: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, mean: jax.Array, spread: jax.Array, mask: jax.Array, *, deterministic: bool, last: int = 0
    ) -> tuple[jax.Array, jax.Array]:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        if not self.rotary:
            init = nn.initializers.normal(0.02)
            mean, spread = (a + self.param(f"positions_{n}", init, a.shape[1:])[None] for n, a in _both(mean, spread))
        mean, spread = drop(mean.astype(self.dtype)), drop(spread.astype(self.dtype))
        for i in range(self.layers):
            asked = last if i == self.layers - 1 else 0
            mixed = self._attend(i, mean, spread, mask, asked)
            mean, spread = mean[:, -asked:] + drop(mixed[0]), spread[:, -asked:] + drop(mixed[1])
            mean, spread = (a + drop(self._feed(f"{n}_{i}", a)) for n, a in _both(mean, spread))
        return tuple(nn.LayerNorm(dtype=self.dtype, name=f"norm_{n}")(a) for n, a in _both(mean, spread))

    def _attend(
        self, i: int, mean: jax.Array, spread: jax.Array, mask: jax.Array, asked: int
    ) -> tuple[jax.Array, jax.Array]:
        width = mean.shape[-1] // self.heads

        def heads(part: str, x: jax.Array) -> jax.Array:
            dense = nn.DenseGeneral((self.heads, width), dtype=self.dtype, name=f"{part}_{i}")
            return dense(x)

        mean = nn.LayerNorm(dtype=self.dtype, name=f"norm_attention_mean_{i}")(mean)
        spread = nn.LayerNorm(dtype=self.dtype, name=f"norm_attention_spread_{i}")(spread)
        first = {"query": -asked, "key": 0, "value": 0}
        query, key, value = (heads(f"{part}_mean", mean[:, begin:]) for part, begin in first.items())
        query_variance, key_variance, value_variance = (
            nn.elu(heads(f"{part}_spread", spread[:, begin:])) + 1 for part, begin in first.items()
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        a = jnp.concatenate([query, _deviation(query_variance)], axis=-1)
        b = jnp.concatenate([key, _deviation(key_variance)], axis=-1)
        # The query's own length is the same for all that it may attend to.
        nearness = 2 * jnp.einsum("bphe,blhe->bhpl", a, b) - jnp.square(b).sum(axis=-1).transpose(0, 2, 1)[:, :, None]
        weights = masked_softmax(nearness / width**0.5, mask[:, None, -asked:]).astype(self.dtype)
        mixed = jnp.einsum("bhpl,blhe->bphe", weights, value)
        variance = jnp.einsum("bhpl,blhe->bphe", jnp.square(weights), value_variance)
        return tuple(
            nn.DenseGeneral(a.shape[2] * width, axis=(-2, -1), dtype=self.dtype, name=f"mix_{n}_{i}")(a)
            for n, a in _both(mixed, variance)
        )

    def _feed(self, name: str, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm(dtype=self.dtype, name=f"norm_hidden_{name}")(x)
        h = nn.elu(nn.Dense(self.hidden, dtype=self.dtype, name=f"hidden_{name}")(h))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name=f"out_{name}")(h)


def _both(mean: jax.Array, spread: jax.Array) -> tuple[tuple[str, jax.Array], ...]:
    return ("mean", mean), ("spread", spread)


def _point(mean: jax.Array, spread: jax.Array) -> jax.Array:
    """[m ; sqrt(s)] of a mean and what makes variances s = elu + 1; moved by 1, which no distance notices."""
    return jnp.concatenate([mean, _deviation(nn.elu(spread) + 1) - 1], axis=-1)


def _deviation(variance: jax.Array) -> jax.Array:
    """The square root, with a finite gradient where elu + 1 has rounded to 0."""
    return jnp.sqrt(jnp.maximum(variance, 1e-12))
