"""DAT (Yu et al. 2021): two towers, each with a vector per id that imitates the other tower's output for its positives.

With `model.dat.behaviours` the user tower also reads the means that `two_tower` reads: the paper's "DAT+" is not
defined in public, this is our reading of it. The mimic losses are squared distances, means over the batch: as sums over
it, in which form they are widely used, their weight would depend on its size.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.losses import weighted_mean
from t2diff_jax.models.objective import next_items, step_items
from t2diff_jax.models.sequential import Sequential
from t2diff_jax.models.two_tower import TwoTowerNet
from t2diff_jax.types import Batch, Catalogue, Variables


class DATNet(TwoTowerNet):
    """The towers with augmented vectors a_u and a_v. A batch also brings "user_row": the row of a_u, int32 [B]."""

    def setup(self) -> None:
        super().setup()
        m, init = self.model, nn.initializers.normal(self.model.init_sd)
        self.augmented_items = self.param("augmented_item_table", init, (self.sizes.rows, m.dim))
        # The last row stands for all users whose id is not known.
        self.augmented_users = self.param("augmented_users", init, (self.sizes.users + 1, m.dim))

    def user_inputs(self, first: int, x: jax.Array, batch: Batch) -> jax.Array:
        """[user features ; a_u] and, with `model.dat.behaviours`, the means of behaviours; [B, P, F]."""
        known = self.user_augmentation(batch)[:, None]
        places = batch["history"][:, first:].shape
        parts = [jnp.broadcast_to(_read(known), (*places, known.shape[-1])), *self.profile(first, batch)]
        if self.model.dat.behaviours:
            parts += self.behaviours(first, x, batch)
        return jnp.concatenate(parts, axis=-1)

    def user_augmentation(self, batch: Batch) -> jax.Array:
        """a_u, [B, D]."""
        return self.augmented_users[batch["user_row"]]

    def item_augmentation(self, ids: jax.Array | None) -> jax.Array:
        """a_v of ids of any shape, [..., D]; of all rows for None."""
        return self.augmented_items if ids is None else self.augmented_items[ids]

    def scored(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """The item tower on [e(i) ; a_v], [..., D]."""
        inputs = jnp.concatenate([self.item_norm(e), _read(self.item_augmentation(ids))], axis=-1)
        return self.directed(self.item_tower(inputs, deterministic=True))

    def __call__(self, catalogue: Catalogue, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Touches every parameter, for `init`."""
        return super().__call__(catalogue, {**batch, "user_row": batch["user"]})


def _read(augmented: jax.Array) -> jax.Array:
    """As a tower's input: what it imitates has length 1, a normed vector beside it that of the root of its width."""
    return augmented * augmented.shape[-1] ** 0.5


@dataclasses.dataclass(frozen=True)
class DAT(Sequential):
    """The retriever: see `types.Retriever`. Its statistics say which users training has met."""

    def init(self, key: jax.Array, catalogue: Catalogue, batch: Batch) -> Variables:
        """{"params", "stats"}; "met" float32 [users] is 1 for a user of an earlier batch."""
        return {**super().init(key, catalogue, batch), "stats": {"met": jnp.zeros(self.sizes.users)}}

    def encode_user(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The vector after the last behaviour, [B, 1, U]; users never met share one a_u."""
        met = variables["stats"]["met"][batch["user"]] > 0
        return super().encode_user(variables, catalogue, self._with_row(batch, met), key)

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """Cross-entropy, the mimic losses |a_u - p_v|^2 and |a_v - p_u|^2, of which p does not learn, and alignment."""
        config, params = self.model.dat, {"params": variables["params"]}
        key_hide, key_dropout = jax.random.split(key)
        named = jax.random.bernoulli(key_hide, 1 - config.unknown_users, batch["user"].shape)
        batch, items = self._with_row(batch, named), step_items(self.net, params, catalogue, self.loss_config, batch)
        x, (targets, weights) = items.lookup(batch["history"]), next_items(batch)
        users = self.net.apply(params, x, batch, deterministic=False, method="user", rngs={"dropout": key_dropout})
        loss = items.cross_entropy(users, targets, weights)
        towers = self.net.apply(params, items.lookup(targets), targets, method="scored")
        mimic = self._mimic(params, batch, users[:, :, 0], towers, targets, weights)
        aligned = 0.0
        if catalogue.categories is not None:
            once = weights * first_of_each(jnp.where(weights > 0, targets, 0))
            aligned = alignment(towers, catalogue.categories[targets], once, self.sizes.categories)
        stats = {"met": variables["stats"]["met"].at[batch["user"]].max(batch["weight"])}
        metrics = {"loss_tower": loss, "loss_mimic": mimic}
        return loss + config.mimic * mimic + config.alignment * aligned, (metrics, stats)

    def _mimic(
        self, params: Any, batch: Batch, users: jax.Array, towers: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> jax.Array:
        own_user = self.net.apply(params, batch, method="user_augmentation")[:, None]
        own_item = self.net.apply(params, targets, method="item_augmentation")
        # Users are scaled for the softmax, and a sketch may follow; items have length 1.
        made = users[..., : self.model.dim] * self.model.two_tower.temperature
        made, towers = jax.lax.stop_gradient((made, towers))
        by_place = jnp.square(own_user - towers).sum(axis=-1) + jnp.square(own_item - made).sum(axis=-1)
        return weighted_mean(by_place, weights)

    def _with_row(self, batch: Batch, known: jax.Array) -> Batch:
        return {**batch, "user_row": jnp.where(known, batch["user"], self.sizes.users)}


def alignment(vectors: jax.Array, categories: jax.Array, weights: jax.Array, kinds: int) -> jax.Array:
    """Category alignment: sum over categories c of |Cov(v | most frequent category) - Cov(v | c)|_F^2, scalar.

    vectors: [..., D] of items; categories: int32 [..., C], 0 for none; weights: [...], 0 for an item that does not
    count; kinds: category ids are below it. Categories of fewer than two items have no covariance and are left out.
    """
    flat, ids = vectors.reshape(-1, vectors.shape[-1]), categories.reshape(-1, categories.shape[-1])
    member = (ids[:, :, None] == jnp.arange(1, kinds)[None, None]).any(axis=1) & (weights.reshape(-1) > 0)[:, None]
    member = member.astype(jnp.float32)
    count = member.sum(axis=0)
    mean = jnp.einsum("nc,nd->cd", member, flat) / jnp.maximum(count, 1)[:, None]
    square = jnp.einsum("nc,nd,ne->cde", member, flat, flat)
    centred = square - count[:, None, None] * mean[:, :, None] * mean[:, None, :]
    covariance = centred / jnp.maximum(count - 1, 1)[:, None, None]
    difference = jnp.square(covariance - covariance[jnp.argmax(count)][None]).sum(axis=(1, 2))
    return jnp.where(count >= 2, difference, 0).sum()


def first_of_each(ids: jax.Array) -> jax.Array:
    """True where an id stands for the first time in an array of any shape, row by row; never for 0."""
    flat = ids.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    new = jnp.concatenate([jnp.ones(1, bool), flat[order][1:] != flat[order][:-1]])
    return (jnp.zeros(len(flat), bool).at[order].set(new) & (flat > 0)).reshape(ids.shape)
