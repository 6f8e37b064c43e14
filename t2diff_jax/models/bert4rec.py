"""BERT4Rec (Sun et al. 2019): a transformer that looks both ways learns items that were masked in the window.

The window that it sees ends with the item to be predicted: place j of it is what followed place j of the history. At
inference that last one is the mask. Everything else is as in `sequential`, so scores are inner products with e(i),
without the published layer and bias before them; the loss is the whole softmax, which such a model is as good with as
SASRec (Klenitskiy & Vasilev 2023).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.models.objective import next_items, step_items
from t2diff_jax.models.sequential import Sequential, SequentialNet
from t2diff_jax.nn.attention import TransformerEncoder
from t2diff_jax.types import Batch, Catalogue, Variables


class BERT4RecNet(SequentialNet):
    """`model.layers` transformer blocks without a causal mask, and a vector that stands for a masked item."""

    def setup(self) -> None:
        super().setup()
        self.mask_vector = self.param("mask_vector", nn.initializers.normal(0.02), (self.model.dim,))

    def make_encoder(self) -> nn.Module:
        """Takes a mask in place of what is valid: see `encode_masked`."""
        m = self.model
        return TransformerEncoder(m.layers, m.heads, m.hidden, m.dropout, m.positions == "rotary", jnp.dtype(m.dtype))

    def encode_masked(
        self, x: jax.Array, masked: jax.Array, batch: Batch, *, deterministic: bool, last: int = 0
    ) -> jax.Array:
        """States [B, L, D] of what followed each behaviour, or of the `last` places alone if positive.

        x: normed vectors of what followed [B, L, D]; masked: bool [B, L].
        """
        valid = batch["history"] > 0
        valid = jnp.concatenate([valid[:, 1:], valid[:, -1:]], axis=1)  # of what followed: of the first behaviour too
        x = jnp.where(masked[..., None], self.mask_vector.astype(x.dtype)[None, None], x)
        both_ways = jnp.broadcast_to(valid[:, None, :], (*valid.shape, valid.shape[1]))
        return self.encoder(x, both_ways, deterministic=deterministic, last=last)

    def encode(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """States [B, L, D]; the last is that of the next item, masked."""
        return self.encode_masked(*self._next_masked(x), batch, deterministic=deterministic)

    def encode_last(self, x: jax.Array, batch: Batch) -> jax.Array:
        """The state of the next item, masked, [B, 1, D]."""
        return self.encode_masked(*self._next_masked(x), batch, deterministic=True, last=1)

    @nn.nowrap
    def _next_masked(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shifted = jnp.concatenate([x[:, 1:], x[:, :1]], axis=1)
        last = jnp.arange(x.shape[1])[None] == x.shape[1] - 1
        return shifted, jnp.broadcast_to(last, x.shape[:2])

    def users_of_masked(self, x: jax.Array, following: jax.Array, masked: jax.Array, batch: Batch) -> jax.Array:
        """User vectors [B, L, M, U] in training; x and `following` [B, L, D] are e(i) of history and what followed."""
        h = self.encode_masked(self.item_norm(following), masked, batch, deterministic=False)
        return self.user_of_states(h, x, batch, deterministic=False)


@dataclasses.dataclass(frozen=True)
class BERT4Rec(Sequential):
    """The retriever: see `types.Retriever`."""

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """Cross-entropy of the masked items, of which each is one with probability `model.bert4rec.masked`."""
        params = {"params": variables["params"]}
        # It looks both ways: all that the window shows lies behind every place, as it does at inference.
        behind = jnp.concatenate([batch[name] for name in ("before", "history") if name in batch], axis=1)
        items = step_items(self.net, params, catalogue, self.loss_config, {**batch, "before": behind})
        targets, weights = next_items(batch)
        masked = masked_places(key, weights > 0, self.model.bert4rec.masked)
        parts = items.lookup(batch["history"]), items.lookup(targets), masked, batch
        users = self.net.apply(params, *parts, method="users_of_masked", rngs={"dropout": key})
        loss = items.cross_entropy(users, targets, weights * masked)
        return loss, ({"loss_tower": loss}, variables["stats"])


def masked_places(key: jax.Array, counted: jax.Array, share: float) -> jax.Array:
    """Which of the counted places bool [B, L] are masked: each with probability `share`; the last always."""
    drawn = jax.random.bernoulli(jax.random.fold_in(key, 0), share, counted.shape)
    last = jnp.arange(counted.shape[1])[None] == counted.shape[1] - 1
    return counted & (drawn | last)
