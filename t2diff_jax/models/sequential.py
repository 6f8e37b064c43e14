"""What sequential models share: item vectors into an encoder over the window, a user vector after every behaviour.

A model is a `SequentialNet` with an encoder of its own. Item representation, history sketch, user features, several
vectors, targets at every position and the softmax are the same for all, so that a comparison is of the encoders.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.config import LossConfig, ModelConfig
from t2diff_jax.models.objective import item_embedding, next_items, step_items
from t2diff_jax.models.visible import latest
from t2diff_jax.nn.embeddings import BehaviourDropout, UserFeatures
from t2diff_jax.nn.sketch import HistorySketch
from t2diff_jax.types import Batch, Catalogue, Sizes, Variables


class SequentialNet(nn.Module):
    """An encoder over the window; user features, where present, are added to every output.

    With `model.vectors` > 1 it is a mixture of softmaxes (Yang et al. 2018), the freedom that several intents give
    T2Diff.
    """

    model: ModelConfig
    sizes: Sizes

    def make_encoder(self) -> nn.Module:
        """The encoder: (x [B, L, D], valid bool [B, L], *, deterministic) -> states [B, L, D], each from what came."""
        raise NotImplementedError

    def encode(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """States [B, L, D] of the normed item vectors x."""
        return self.encoder(x, batch["history"] > 0, deterministic=deterministic)

    def encode_last(self, x: jax.Array, batch: Batch) -> jax.Array:
        """Of these the last, for serving, [B, 1, D]; models that need no other place make no other."""
        return self.encode(x, batch, deterministic=True)[:, -1:]

    def setup(self) -> None:
        m, dtype = self.model, jnp.dtype(self.model.dtype)
        self.items = item_embedding(m, self.sizes)
        self.behaviour_dropout = BehaviourDropout(m.behaviour_dropout, m.init_sd)
        # Item vectors are small beside the states of an encoder, which would drown them.
        self.item_norm = nn.LayerNorm(dtype=dtype)
        self.encoder = self.make_encoder()
        if m.sketch_dim:
            self.sketch = HistorySketch(self.sizes.rows, m.sketch_dim, m.sketch_dropout)
        if self.sizes.user_features:
            self.users = UserFeatures(self.sizes.user_features, m.user_feature_dim, m.init_sd)
            self.user_out = nn.Dense(m.dim)
        if m.vectors > 1:
            self.heads = nn.Dense(m.vectors * m.dim)

    def item_table(self, catalogue: Catalogue) -> jax.Array:
        """e(i) of every row, [R, D]."""
        return self.items.table(catalogue)

    def embed(self, ids: jax.Array, catalogue: Catalogue) -> jax.Array:
        """e(i), [..., D]."""
        return self.items(ids, catalogue)

    def scored(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """What the encoder's states are multiplied with: e(i) itself, [..., D]; ids None: of all rows."""
        return e

    def score_vectors(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """The scored item vectors [..., U]: `scored`, with its signature if there is a history sketch."""
        scored = self.scored(e, ids)
        return jnp.concatenate([scored, self.sketch.signatures(ids)], axis=-1) if self.model.sketch_dim else scored

    def user(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """M user vectors after every behaviour, float32 [B, L, M, U]: the state, plus a linear map of it for M > 1."""
        x = self.behaviour_dropout(x, batch["history"], deterministic=deterministic)
        h = self.encode(self.item_norm(x), batch, deterministic=deterministic)
        return self.user_of_states(h, x, batch, deterministic=deterministic)

    def last_user(self, x: jax.Array, batch: Batch) -> jax.Array:
        """Of these the vectors of the last place, for serving, [B, 1, M, U]."""
        return self.user_of_states(self.encode_last(self.item_norm(x), batch), x, batch, deterministic=True)

    def user_of_states(self, h: jax.Array, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """User vectors [B, P, M, U] of the encoder's last states h [B, P, D]; x: e(i) of the behaviours."""
        h = h.astype(jnp.float32)
        if self.sizes.user_features:
            h = h + self.user_out(self.users(batch["user_features"]))[:, None]
        users = h[:, :, None]
        if self.model.vectors > 1:
            users = users + self.heads(h).reshape(*h.shape[:2], self.model.vectors, -1)
        return self.with_sketch(self.model.user_scale * users, x, batch, deterministic=deterministic)

    def with_sketch(self, users: jax.Array, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """The users of the last P places [B, P, M, .] and, if there is one, the history sketch of each [B, P, M, U]."""
        if not self.model.sketch_dim:
            return users
        scored, causal = self.scored(x, batch["history"]), latest(batch, 0, x.shape[1] - users.shape[1])
        args = scored, batch["history"], causal
        each = [self.sketch(users[:, :, m], *args, deterministic=deterministic) for m in range(users.shape[2])]
        return jnp.concatenate([users, jnp.stack(each, axis=2)], axis=-1)

    def __call__(self, catalogue: Catalogue, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Users and scored vectors of the behaviours: touches every parameter, for `init`."""
        x = self.embed(batch["history"], catalogue)
        return self.user(x, batch, deterministic=True), self.score_vectors(x, batch["history"])


@dataclasses.dataclass(frozen=True)
class Sequential:
    """The retriever of a `SequentialNet`: see `types.Retriever`."""

    kind: type[SequentialNet]
    model: ModelConfig
    loss_config: LossConfig
    sizes: Sizes

    @property
    def net(self) -> SequentialNet:
        """The module; a property, so that the retriever stays a plain hashable record."""
        return self.kind(self.model, self.sizes)

    def init(self, key: jax.Array, catalogue: Catalogue, batch: Batch) -> Variables:
        """{"params", "stats"}; there are no statistics."""
        return {"params": self.net.init(key, catalogue, batch)["params"], "stats": {}}

    def encode_user(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The vectors after the last behaviour, [B, M, U]; the key is not used."""
        params = {"params": variables["params"]}
        x = self.net.apply(params, batch["history"], catalogue, method="embed")
        users = self.net.apply(params, x, batch, method="last_user")[:, 0]
        return users, jnp.ones(users.shape[:2], bool)

    def encode_items(self, variables: Variables, catalogue: Catalogue) -> jax.Array:
        """Scored vectors of every row, [R, U]."""
        params = {"params": variables["params"]}
        table = self.net.apply(params, catalogue, method="item_table")
        return self.net.apply(params, table, None, method="score_vectors")

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """Cross-entropy of the next item after every valid behaviour of the window."""
        params = {"params": variables["params"]}
        items = step_items(self.net, params, catalogue, self.loss_config, batch)
        history = batch["history"]
        x = items.lookup(history)
        users = self.net.apply(params, x, batch, deterministic=False, method="user", rngs={"dropout": key})
        targets, weights = next_items(batch)
        loss = items.cross_entropy(users, targets, weights)
        return loss, ({"loss_tower": loss}, variables["stats"])
