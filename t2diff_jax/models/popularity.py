"""The popularity baseline: every user gets the items in order of their training counts."""

import dataclasses

import jax
import jax.numpy as jnp

from t2diff_jax.types import Batch, Catalogue, Variables


@dataclasses.dataclass(frozen=True)
class Popularity:
    """A retriever without parameters; equal counts are ties. It cannot be trained, so it has no `loss`."""

    def encode_user(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The constant user vector [B, 1, 1] and its mask [B, 1]."""
        rows = batch["history"].shape[0]
        return jnp.ones((rows, 1, 1)), jnp.ones((rows, 1), bool)

    def encode_items(self, variables: Variables, catalogue: Catalogue) -> jax.Array:
        """The counts [R, 1]."""
        return catalogue.counts[:, None]
