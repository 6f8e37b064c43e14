"""A plain two-tower model (Huang et al. 2013, Covington et al. 2016): one hidden layer over means, one over e(i).

The user is the mean of all behaviours, the mean of those of the session and, where the log has them, user features:
what T2Diff's mixed attention also reads. No place knows the order of its behaviours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.sequential import SequentialNet
from t2diff_jax.models.visible import mean_of, past_and_session
from t2diff_jax.nn.towers import Tower, Towers, unit
from t2diff_jax.types import Batch


class TwoTowerNet(SequentialNet):
    """The towers. With `model.two_tower.temperature` a score is the cosine over it."""

    def setup(self) -> None:
        super().setup()
        m = self.model
        self.item_tower = Tower(m.hidden, m.dim, 0.0, jnp.dtype(m.dtype))

    def make_encoder(self) -> nn.Module:
        """The user tower: one."""
        m = self.model
        return Towers(1, m.hidden, m.dim, m.dropout, jnp.dtype(m.dtype))

    def user(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """The vector of each user tower after every behaviour, float32 [B, L, M, U]."""
        x = self.behaviour_dropout(x, batch["history"], deterministic=deterministic)
        return self.users_from(0, x, batch, deterministic=deterministic)

    def last_user(self, x: jax.Array, batch: Batch) -> jax.Array:
        """Those of the last place alone, [B, 1, M, U]."""
        return self.users_from(x.shape[1] - 1, x, batch, deterministic=True)

    def users_from(self, first: int, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """Those of the places first.., [B, P, M, U]."""
        users = self.directed(self.encoder(self.user_inputs(first, x, batch), deterministic=deterministic))
        if self.model.two_tower.temperature:
            users = users / self.model.two_tower.temperature
        return self.with_sketch(users, x, batch, deterministic=deterministic)

    def user_inputs(self, first: int, x: jax.Array, batch: Batch) -> jax.Array:
        """What a user tower reads at the places first.., [B, P, F]; x: e(i) of the behaviours."""
        return jnp.concatenate([*self.behaviours(first, x, batch), *self.profile(first, batch)], axis=-1)

    def behaviours(self, first: int, x: jax.Array, batch: Batch) -> list[jax.Array]:
        """The means of history and session at the places first.., [B, P, D] each."""
        past, session = past_and_session(self.model, batch, first)
        x = self.item_norm(x)
        return [mean_of(x, past), mean_of(x, session)]

    def profile(self, first: int, batch: Batch) -> list[jax.Array]:
        """Embedded user features at the places first.., [B, P, E], where there are any."""
        if not self.sizes.user_features:
            return []
        features = self.users(batch["user_features"])[:, None]
        return [jnp.broadcast_to(features, (*batch["history"][:, first:].shape, features.shape[-1]))]

    def scored(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """The item tower, [..., D]."""
        return self.directed(self.item_tower(self.item_norm(e), deterministic=True))

    @nn.nowrap
    def directed(self, v: jax.Array) -> jax.Array:
        """Vectors of length 1 where scores are cosines, else as they are."""
        return unit(v) if self.model.two_tower.temperature else v
