"""COLD (Wang et al. 2020): a network over pairs of user and item that is cheap enough to rank what retrieval found.

Groups of features make one vector each. A squeeze-and-excitation block gives every group a gate, a layer over the gated
groups and further ones give what is added to the retriever's own score: at first nothing, so that the order starts as
it was retrieved. Groups whose gate is low can be left out, and the rest trained anew. What concerns the user alone is
computed once for all items of a request.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.config import ColdConfig, ModelConfig
from t2diff_jax.models.objective import item_embedding
from t2diff_jax.models.visible import mean_of, past_and_session
from t2diff_jax.nn.embeddings import UserFeatures
from t2diff_jax.types import Batch, Catalogue, Sizes, Variables


def feature_groups(model: ModelConfig, sizes: Sizes) -> tuple[str, ...]:
    """The groups that a log has data for and embeddings have room for; `*_cross`: item times what the user had."""
    present = {
        "user": bool(sizes.user_features),
        "category": sizes.categories > 0 and model.category_dim > 0,
        "content": sizes.content > 0 and model.content_dim > 0,
    }
    names = ("history", "session", "last", "user", "item", "category", "content")
    crosses = ("history_cross", "session_cross", "last_cross")
    return (*(name for name in names if present.get(name, True)), *crosses)


class COLDNet(nn.Module):
    """Scores of C items of each request.

    A batch has, beside the windows, what the retriever scored the items: "retrieved", float32 [B, C], less its best.

    Attributes:
      model: widths of the embeddings, session length.
      groups: those of `feature_groups` that it reads.
    """

    cold: ColdConfig
    model: ModelConfig
    sizes: Sizes
    groups: tuple[str, ...]

    def setup(self) -> None:
        first, *rest = self.cold.hidden
        self.items = item_embedding(self.model, self.sizes)
        self.item_norm = nn.LayerNorm()
        if "user" in self.groups:
            self.users = UserFeatures(self.sizes.user_features, self.model.user_feature_dim, self.model.init_sd)
        # One linear map per group makes its share of the first layer and of all gates.
        self.maps = [nn.Dense(first + len(self.groups), use_bias=False, name=f"map_{name}") for name in self.groups]
        self.bias = self.param("bias", nn.initializers.zeros, (first,))
        self.gate_bias = self.param("gate_bias", nn.initializers.zeros, (len(self.groups),))
        self.layers = [nn.Dense(width, name=f"layer_{i}") for i, width in enumerate(rest, 1)]
        # No bias: what all items of a request get is no evidence.
        self.out = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name="out")

    def __call__(self, catalogue: Catalogue, batch: Batch, items: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores [B, C] of the items int32 [B, C], and the gates [B, C, G]."""
        features, first = self.features(catalogue, batch, items), self.cold.hidden[0]
        mapped = [dense(features[name]) for dense, name in zip(self.maps, self.groups, strict=True)]
        gates = nn.sigmoid(sum(m[..., first:] for m in mapped) + self.gate_bias[None, None])
        h = sum(gates[..., g, None] * m[..., :first] for g, m in enumerate(mapped))
        h = nn.relu(h + self.bias[None, None])
        for layer in self.layers:
            h = nn.relu(layer(h))
        return batch["retrieved"] + self.out(h)[..., 0], jnp.broadcast_to(gates, (*items.shape, len(self.groups)))

    def features(self, catalogue: Catalogue, batch: Batch, items: jax.Array) -> dict[str, jax.Array]:
        """Every group's vector, [B, C, .], of the user alone [B, 1, .]."""
        history, m = batch["history"], self.model
        x, e = (self.item_norm(self.items(ids, catalogue)) for ids in (history, items))
        past, session = past_and_session(m, batch, history.shape[1] - 1)
        of_user = {
            "history": mean_of(x, past),
            "session": mean_of(x, session),
            "last": x[:, -1:] * (history[:, -1:] > 0)[..., None],
        }
        content = m.content_dim if self.sizes.content else 0
        category = m.category_dim if self.sizes.categories else 0
        own, of_category, of_content = jnp.split(e, (m.dim - content - category, m.dim - content), axis=-1)
        of_item = {"item": own, "category": of_category, "content": of_content}
        crosses = {f"{name}_cross": value * e for name, value in of_user.items()}
        user = {"user": self.users(batch["user_features"])[:, None]} if "user" in self.groups else {}
        return of_user | user | of_item | crosses


@dataclasses.dataclass(frozen=True)
class COLD:
    """The pre-ranker: see `types.PreRanker`.

    Attributes:
      groups: of features, some of `feature_groups`.
    """

    cold: ColdConfig
    model: ModelConfig
    sizes: Sizes
    groups: tuple[str, ...]

    @property
    def net(self) -> COLDNet:
        """The module."""
        return COLDNet(self.cold, self.model, self.sizes, self.groups)

    def init(self, key: jax.Array, catalogue: Catalogue, batch: Batch, items: jax.Array) -> Variables:
        """{"params"}."""
        return self.net.init(key, catalogue, batch, items)

    def score(self, variables: Variables, catalogue: Catalogue, batch: Batch, items: jax.Array) -> jax.Array:
        """[B, C]."""
        return self.net.apply(variables, catalogue, batch, items)[0]

    def loss(self, variables: Variables, catalogue: Catalogue, batch: Batch, items: jax.Array) -> jax.Array:
        """-log share of the first item of each row in the softmax over its row; ids of 0 are no candidates."""
        scores = jnp.where(items > 0, self.score(variables, catalogue, batch, items), -jnp.inf)
        return (jax.nn.logsumexp(scores, axis=-1) - scores[:, 0]).mean()

    def gates(self, variables: Variables, catalogue: Catalogue, batch: Batch, items: jax.Array) -> jax.Array:
        """Mean gate of every group, [G]."""
        return self.net.apply(variables, catalogue, batch, items)[1].mean(axis=(0, 1))
