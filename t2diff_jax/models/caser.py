"""Caser (Tang & Wang 2018): convolutions over the matrix of the last item vectors; here at every position.

The published model adds a vector per user id; it is left out, as no model here but DAT knows users by their ids.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.config import CaserConfig
from t2diff_jax.models.sequential import SequentialNet
from t2diff_jax.types import Batch


class CaserNet(SequentialNet):
    """Horizontal filters of every height and vertical filters over the last `model.caser.last` behaviours."""

    def make_encoder(self) -> nn.Module:
        """The convolutions."""
        return CaserEncoder(self.model.caser, self.model.dropout, jnp.dtype(self.model.dtype))

    def encode_last(self, x: jax.Array, batch: Batch) -> jax.Array:
        """The last state, [B, 1, D], of the behaviours that it sees."""
        seen = self.model.caser.last
        return self.encoder(x[:, -seen:], batch["history"][:, -seen:] > 0, deterministic=True)[:, -1:]


class CaserEncoder(nn.Module):
    """A horizontal filter looks at some neighbouring items whole and keeps its greatest answer; a vertical one weighs
    the items of the matrix, the same in every dimension."""

    sizes: CaserConfig
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, *, deterministic: bool) -> jax.Array:
        last, width = self.sizes.last, x.shape[-1]
        x = jnp.where(valid[..., None], x, 0)
        padded = jnp.pad(x, ((0, 0), (last - 1, 0), (0, 0)))
        matrix = jnp.stack([padded[:, i : i + x.shape[1]] for i in range(last)], axis=2)  # [B, L, last, D]
        found = []
        for height in range(1, last + 1):
            filters = nn.Conv(
                self.sizes.horizontal, (height,), padding="VALID", dtype=self.dtype, name=f"horizontal_{height}"
            )
            found.append(nn.relu(filters(matrix)).max(axis=-2))
        weights = self.param("vertical", nn.initializers.lecun_normal(), (last, self.sizes.vertical))
        vertical = jnp.einsum("blid,iv->blvd", matrix, weights.astype(self.dtype))
        found.append(vertical.reshape(*x.shape[:2], -1))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(jnp.concatenate(found, axis=-1))
        # The published model scores relu(hidden) against a second item table; ours is shared with the input.
        return nn.Dense(width, dtype=self.dtype, name="out")(
            nn.relu(nn.Dense(width, dtype=self.dtype, name="hidden")(h))
        )
