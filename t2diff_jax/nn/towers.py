"""The towers: mixed attention over session, history and generated next item (T2Diff section 4.3); the item tower."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.nn.attention import TargetAttention, TransformerEncoder


class MixedAttention(nn.Module):
    """User vector from the session, the history and, if there is one, the representation of the next item (19-22).

    Attributes:
      output_dim: width of the user vector of the `ffn` user tower; `concat` gives 2 D (+ user features).
      attend_self: False keeps every position from attending to itself (the paper's published configuration).
    """

    layers: int
    heads: int
    hidden: int
    dropout: float
    rotary: bool
    attend_self: bool
    activation_hidden: int
    lag_buckets: int
    user_tower: str
    output_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        session: Float[Array, "B k D"],
        session_mask: Bool[Array, "B k"],
        history: Float[Array, "B J D"],
        history_mask: Bool[Array, "B J"],
        slot: Float[Array, "B D"] | None,
        lag: Int[Array, "B J"] | None,
        user_features: Float[Array, "B E"] | None,
        *,
        deterministic: bool,
    ) -> Float[Array, "B U"]:
        """One window per row; `slot` is xhat_{n+1}, None for mixed attention alone. Empty session and history are 0."""
        if slot is not None:
            session = jnp.concatenate([session, slot[:, None]], axis=1)
            session_mask = jnp.pad(session_mask, ((0, 0), (0, 1)), constant_values=True)
        h_s = self._early_interaction(session, session_mask, deterministic)
        attention = TargetAttention(self.activation_hidden, self.lag_buckets, self.dtype, name="target_attention")
        h_l = attention(history, h_s[:, None], history_mask[:, None], None if lag is None else lag[:, None])[:, 0]
        parts = [h_l, h_s] + ([] if user_features is None else [user_features.astype(self.dtype)])
        joined = jnp.concatenate(parts, axis=-1)
        if self.user_tower == "concat":
            return joined.astype(jnp.float32)
        hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="user_hidden")(joined))
        return nn.Dense(self.output_dim, dtype=jnp.float32, name="user_out")(hidden)

    def _early_interaction(self, tokens: Array, mask: Array, deterministic: bool) -> Array:
        pairs = mask[:, None, :]
        if not self.attend_self:
            pairs = pairs & ~jnp.eye(tokens.shape[1], dtype=bool)[None]
        encoder = TransformerEncoder(
            self.layers, self.heads, self.hidden, self.dropout, self.rotary, self.dtype, name="session"
        )
        encoded = encoder(tokens, pairs, deterministic=deterministic) * mask[..., None]
        return encoded.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(self.dtype)


class Tower(nn.Module):
    """A tower of one hidden layer: dense, GELU, dropout, dense; float32."""

    hidden: int
    output_dim: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... F"], *, deterministic: bool) -> Float[Array, "... U"]:
        h = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return nn.Dense(self.output_dim, dtype=jnp.float32, name="out")(h)


class Towers(nn.Module):
    """K towers side by side, each with weights of its own."""

    number: int
    hidden: int
    output_dim: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... F"], *, deterministic: bool) -> Float[Array, "... K U"]:
        args = self.hidden, self.output_dim, self.dropout, self.dtype
        towers = [Tower(*args, name=f"tower_{k}") for k in range(self.number)]
        return jnp.stack([tower(x, deterministic=deterministic) for tower in towers], axis=-2)


class ItemTower(nn.Module):
    """Scored item vector of e(i): `identity`, or one dense layer, ELU, layer norm (the paper's)."""

    kind: str
    output_dim: int

    @nn.compact
    def __call__(self, e: Float[Array, "... D"]) -> Float[Array, "... U"]:
        if self.kind == "identity":
            return e
        return nn.LayerNorm(name="norm")(nn.elu(nn.Dense(self.output_dim, name="dense")(e)))


def unit(v: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """v / |v|; 0 for a zero vector, with a finite gradient."""
    return v * jax.lax.rsqrt(jnp.maximum(jnp.square(v).sum(axis=-1, keepdims=True), 1e-12))
