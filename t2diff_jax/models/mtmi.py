"""In the style of MTMI (arXiv 2403.05122, of which only the abstract is public): K user towers over shared embeddings.

Training scores an item as serving does, by the user vector that likes it best, and a user's vectors repel each other.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax import repel
from t2diff_jax.models.interests import InterestNet, MultiInterest
from t2diff_jax.models.two_tower import TwoTowerNet
from t2diff_jax.nn.towers import Towers


class MTMINet(TwoTowerNet, InterestNet):
    """Each tower reads what the one of `two_tower` reads, with weights of its own; the item tower is the same."""

    def make_encoder(self) -> nn.Module:
        """The user towers: one for each interest."""
        m = self.model
        return Towers(m.interests.number, m.hidden, m.dim, m.dropout, jnp.dtype(m.dtype))


@dataclasses.dataclass(frozen=True)
class MTMI(MultiInterest):
    """The retriever: see `types.Retriever`. Its loss configuration has `merge` = "max"."""

    def spoken(self, users: jax.Array, active: jax.Array, wanted: jax.Array) -> jax.Array:
        """All vectors: the softmax is over the greatest of their scores."""
        return users

    def repel(self, users: jax.Array, active: jax.Array) -> jax.Array:
        """[B, L]."""
        return repel.alike(users, active, self.model.interests.margin)
