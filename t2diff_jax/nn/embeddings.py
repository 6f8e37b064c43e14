"""Item and user-feature embeddings: e(i) = [id embedding ; mean of category embeddings ; projected content]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t2diff_jax.types import Catalogue


class ItemEmbedding(nn.Module):
    """One item representation for behaviours, targets and the item tower. Padding (id 0) is the zero vector.

    Attributes:
      rows: R, rows of the id table.
      dim: D; the id part is what categories and content leave of it.
      categories: rows of the category table (0: no categories), row 0 being padding.
      category_dim, content_dim: widths of these parts, 0 where absent.
    """

    rows: int
    dim: int
    categories: int
    category_dim: int
    content_dim: int
    init_sd: float

    def setup(self) -> None:
        init = nn.initializers.normal(self.init_sd)
        id_dim = self.dim - self.category_dim - self.content_dim
        self.item_table = self.param("item_table", init, (self.rows, id_dim))
        if self.category_dim:
            self.category_table = self.param("category_table", init, (self.categories, self.category_dim))
        if self.content_dim:
            self.content = nn.Dense(self.content_dim, use_bias=False)

    def __call__(self, ids: Int[Array, "..."], catalogue: Catalogue) -> Float[Array, "... D"]:
        """e(i) for ids of any shape."""
        categories, content = (None if x is None else x[ids] for x in (catalogue.categories, catalogue.content))
        return self._join(self.item_table[ids], categories, content) * (ids > 0)[..., None]

    def table(self, catalogue: Catalogue) -> Float[Array, "R D"]:
        """e(i) of every row, without a gather of the id table. Rows that are no items are zero."""
        joined = self._join(self.item_table, catalogue.categories, catalogue.content)
        return joined * is_item(catalogue)[:, None]

    def _join(self, id_part: Array, categories: Array | None, content: Array | None) -> Array:
        parts = [id_part]
        if self.category_dim:
            parts.append(self._mean_category(categories))
        if self.content_dim:
            parts.append(self.content(content))
        return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else id_part

    def _mean_category(self, categories: Int[Array, "... C"]) -> Float[Array, "... E"]:
        present = (categories > 0)[..., None]
        total = jnp.sum(self.category_table[categories] * present, axis=-2)
        return total / jnp.maximum(present.sum(axis=-2), 1)


def is_item(catalogue: Catalogue) -> Array:
    """bool [R]: rows 1..N are items; row 0 is padding, rows above N only fill the table."""
    row = jnp.arange(catalogue.n_rows)
    return (row > 0) & (row <= catalogue.n_items)


class BehaviourDropout(nn.Module):
    """In training one learned vector stands in place of e(i) of `rate` of the behaviours, drawn anew at every step.

    Dropout of dimensions leaves every behaviour known: histories are still learned by heart, which is of no use for
    users whom training never met. A history sketch still names what is hidden: what was had must leave the ranking.
    Random stream: "dropout". With a rate of 0 there is no such vector.
    """

    rate: float
    init_sd: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], history: Int[Array, "B L"], *, deterministic: bool
    ) -> Float[Array, "B L D"]:
        """x with padding as it was."""
        if self.rate == 0:
            return x
        blank = self.param("blank", nn.initializers.normal(self.init_sd), x.shape[-1:])
        if deterministic:
            return x
        hidden = jax.random.bernoulli(self.make_rng("dropout"), self.rate, history.shape) & (history > 0)
        return jnp.where(hidden[..., None], blank[None, None], x)


class UserFeatures(nn.Module):
    """Concatenated embeddings of the categorical user features; id 0 is "unknown"."""

    sizes: tuple[int, ...]
    dim: int
    init_sd: float

    @nn.compact
    def __call__(self, features: Int[Array, "B F"]) -> Float[Array, "B E"]:
        init = nn.initializers.normal(self.init_sd)
        tables = [self.param(f"table_{i}", init, (size, self.dim)) for i, size in enumerate(self.sizes)]
        return jnp.concatenate([table[features[:, i]] for i, table in enumerate(tables)], axis=-1)
