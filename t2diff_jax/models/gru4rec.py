"""GRU4Rec (Hidasi et al. 2016): gated recurrent units; with cross-entropy at every position, as SASRec here."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.sequential import SequentialNet


class GRU4RecNet(SequentialNet):
    """`model.layers` recurrent layers of `model.hidden` units."""

    def make_encoder(self) -> nn.Module:
        """The recurrent layers."""
        m = self.model
        return GRUEncoder(m.layers, m.hidden, m.dropout, jnp.dtype(m.dtype))


class GRUEncoder(nn.Module):
    """Recurrent layers, and a linear map from their width to that of the items. Padding leaves a state as it is."""

    layers: int
    hidden: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, *, deterministic: bool) -> jax.Array:
        drop, width = nn.Dropout(self.dropout, deterministic=deterministic), x.shape[-1]
        # One cell for all places; what it takes from the inputs is made for all of them at once.
        layer = nn.scan(_Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        for i in range(self.layers):
            start = jnp.zeros((len(x), self.hidden), self.dtype)
            inputs = nn.Dense(3 * self.hidden, dtype=self.dtype, name=f"input_{i}")(drop(x))
            x = layer(self.hidden, self.dtype, name=f"layer_{i}")(start, (inputs, valid))[1]
        return nn.Dense(width, dtype=self.dtype, name="out")(drop(x))


class _Cell(nn.Module):
    """n = tanh(i_n + r * h_n), h' = z h + (1 - z) n, with the gates r, z = sigmoid(i + h) (Cho et al. 2014)."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        given, valid = inputs
        own = nn.Dense(3 * self.hidden, dtype=self.dtype, kernel_init=nn.initializers.orthogonal(), name="state")(state)
        reset, keep = jnp.split(nn.sigmoid((given + own)[:, : 2 * self.hidden]), 2, axis=-1)
        new = jnp.tanh(given[:, 2 * self.hidden :] + reset * own[:, 2 * self.hidden :])
        state = jnp.where(valid[:, None], keep * state + (1 - keep) * new, state)
        return state, state
