"""What models of several interests share: K vectors of a user, of which the one nearest to an item scores it.

They are searched together and merged by maximum (`eval.merge`). In training the target says which interest speaks
(label-aware attention, Li et al. 2019): the softmax over the catalogue is that of the chosen vector alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t2diff_jax.losses import weighted_mean
from t2diff_jax.models.objective import next_items, step_items
from t2diff_jax.models.sequential import Sequential, SequentialNet
from t2diff_jax.nn.attention import masked_softmax
from t2diff_jax.types import Batch, Catalogue, Variables


class InterestNet(SequentialNet):
    """K = `model.interests.number` vectors after every behaviour."""

    def interests(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """[B, L, K, D] of the normed item vectors x [B, L, D]."""
        raise NotImplementedError

    def active(self, batch: Batch) -> jax.Array:
        """Which of the K there are after every behaviour, bool [B, L, K]: all."""
        return jnp.ones((*batch["history"].shape, self.model.interests.number), bool)

    def user(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """The K vectors, user features added to each, float32 [B, L, K, U]."""
        x = self.behaviour_dropout(x, batch["history"], deterministic=deterministic)
        users = self.interests(self.item_norm(x), batch, deterministic=deterministic)
        return self.with_profile(users, x, batch, deterministic=deterministic)

    def last_user(self, x: jax.Array, batch: Batch) -> jax.Array:
        """Those of the last place, [B, 1, K, U]: made of the latest behaviours alone."""
        near = latest_part(batch, self.model.interests.last)
        x_near = x[:, -near["history"].shape[1] :]
        users = self.interests(self.item_norm(x_near), near, deterministic=True)
        return self.with_profile(users[:, -1:], x, batch, deterministic=True)

    def with_profile(self, users: jax.Array, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """The interests [B, P, K, D] of the last P places with user features and sketch, float32 [B, P, K, U]."""
        users = users.astype(jnp.float32)
        if self.sizes.user_features:
            users = users + self.user_out(self.users(batch["user_features"]))[:, None, None]
        return self.with_sketch(users, x, batch, deterministic=deterministic)


@dataclasses.dataclass(frozen=True)
class MultiInterest(Sequential):
    """The retriever of an `InterestNet`: see `types.Retriever`."""

    def encode_user(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The vectors after the last behaviour, [B, K, U], and which of them there are; the key is not used."""
        users, _ = super().encode_user(variables, catalogue, batch, key)
        return users, self._active(variables, latest_part(batch, self.model.interests.last))[:, -1]

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """Cross-entropy of the next item under the interests that the target chooses, and what keeps these apart."""
        params = {"params": variables["params"]}
        items = step_items(self.net, params, catalogue, self.loss_config, batch)
        history, (targets, weights) = batch["history"], next_items(batch)
        args = dict(deterministic=False, method="user", rngs={"dropout": key})
        users, active = self.net.apply(params, items.lookup(history), batch, **args), self._active(variables, batch)
        wanted = self.net.apply(params, items.lookup(targets), targets, method="score_vectors")
        spoken = self.spoken(users, active, wanted)
        loss = items.cross_entropy(spoken, targets, weights)
        apart = weighted_mean(self.repel(users[..., : self.model.dim], active), weights)
        total = loss + self.model.interests.diversity_weight * apart
        return total, ({"loss_tower": loss, "loss_repel": apart}, variables["stats"])

    def spoken(self, users: jax.Array, active: jax.Array, wanted: jax.Array) -> jax.Array:
        """The vectors of which the softmax is learned, [B, L, M, U]: one, that the target's vector chooses."""
        return label_aware(users, active, wanted, self.model.interests.label_power)[:, :, None]

    def repel(self, users: jax.Array, active: jax.Array) -> jax.Array:
        """What is to be small lest the vectors [B, L, K, D] become alike, [B, L]: nothing."""
        return jnp.zeros(users.shape[:2])

    def _active(self, variables: Variables, batch: Batch) -> jax.Array:
        return self.net.apply({"params": variables["params"]}, batch, method="active")


def latest_part(batch: Batch, last: int) -> Batch:
    """The batch with the last `last` places of its windows alone; 0: as it is."""
    return {**batch, "history": batch["history"][:, -last:]}


def label_aware(users: jax.Array, active: jax.Array, wanted: jax.Array, power: float) -> jax.Array:
    """The interests [B, L, K, U] weighed by softmax(<u_k, v>^power), [B, L, U]; power 0: its limit, the nearest alone.

    The power keeps the sign of the product, so that an interest opposed to the target is never preferred.
    """
    products = jnp.einsum("blku,blu->blk", users, wanted)
    if not power:
        chosen = jnp.argmax(jnp.where(active, products, jnp.finfo(products.dtype).min), axis=-1)
        return jnp.take_along_axis(users, chosen[:, :, None, None], axis=2)[:, :, 0]
    shares = masked_softmax(jnp.sign(products) * jnp.abs(products) ** power, active)
    return jnp.einsum("blk,blku->blu", shares, users)
