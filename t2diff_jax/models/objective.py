"""What every trained retriever shares: item vectors for one step, and cross-entropy against the catalogue."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax import losses
from t2diff_jax.config import LossConfig, ModelConfig
from t2diff_jax.nn.attention import masked_softmax
from t2diff_jax.nn.embeddings import ItemEmbedding, is_item
from t2diff_jax.seen import Seen
from t2diff_jax.types import Batch, Catalogue, Sizes, Variables


class StepItems(NamedTuple):
    """Item vectors as one training step needs them.

    Attributes:
      lookup: ids [...] -> e(i) [..., D].
      cross_entropy: (user vectors [B, P, M, U], target ids [B, P], their weights [B, P]) -> mean loss; the M vectors
        of a place are a mixture.
      embedding_cross_entropy: the same for vectors [B, P, M, D] against e(i), which does not learn.

    Targets follow the last P places of the history; with `loss.exclude_seen` what lies behind a place is no candidate:
    what the window has shown up to there, and what the batch says of the behaviours "before" it.
    """

    lookup: Callable[[jax.Array], jax.Array]
    cross_entropy: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    embedding_cross_entropy: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def item_embedding(model: ModelConfig, sizes: Sizes) -> ItemEmbedding:
    """The embedding module for a log: parts that it has no data for leave their width to the ids."""
    return ItemEmbedding(
        rows=sizes.rows,
        dim=model.dim,
        categories=sizes.categories,
        category_dim=model.category_dim if sizes.categories else 0,
        content_dim=model.content_dim if sizes.content else 0,
        init_sd=model.init_sd,
    )


def step_items(net: nn.Module, variables: Variables, catalogue: Catalogue, loss: LossConfig, batch: Batch) -> StepItems:
    """Full softmax computes the table once and looks up in it; sampled softmax touches only the rows it needs.

    batch: where negatives are drawn, it has their ids ("negatives", int32 [n]) and the log of how often each is to be
      expected ("log_counts", float32 [n]).
    `net` has a `model` configuration and exposes `item_table(catalogue)`, `embed(ids, catalogue)` and
    `score_vectors(e, ids)` (ids None: all rows).

    Raises:
      ValueError: `loss` wants negatives and there are none, or the reverse.
    """
    if ("negatives" in batch) != loss.sampled:
        brought = "some" if "negatives" in batch else "none"
        wanted = f"loss.negatives={loss.negatives}, loss.batch_negatives={loss.batch_negatives}"
        raise ValueError(f"{wanted}, but the batch brings {brought}")

    def apply(method: str, *args: object) -> jax.Array:
        return net.apply(variables, *args, method=method)

    shown = _shown(batch) if loss.exclude_seen else None
    if not loss.sampled:
        return _all_items(apply, catalogue, loss, net.model.row_multiple, shown)
    return _sampled_items(apply, catalogue, loss, batch, shown)


def _shown(batch: Batch) -> jax.Array:
    """The behaviours that a step knows of, the newest last, int32 [B, S + L]: windows, and what came before them."""
    if "before" not in batch:
        return batch["history"]
    return jnp.concatenate([batch["before"], batch["history"]], axis=1)


def _all_items(
    apply: Callable[..., jax.Array], catalogue: Catalogue, loss: LossConfig, row_multiple: int, shown: jax.Array | None
) -> StepItems:
    table = apply("item_table", catalogue)
    scored, valid = apply("score_vectors", table, None), is_item(catalogue)

    def against(rows: jax.Array, vectors: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        seen = None if shown is None else Seen.of(shown, targets.shape[1])
        flat = vectors.reshape(-1, *vectors.shape[2:]), rows, targets.reshape(-1), valid, weights.reshape(-1)
        how = dict(label_smoothing=loss.label_smoothing, merge=loss.merge)
        how |= dict(chunk=loss.chunk, block=loss.block, parts=row_multiple)
        return losses.mean_full_softmax(*flat, seen, **how)

    return StepItems(
        lambda ids: table[ids],
        functools.partial(against, scored),
        functools.partial(against, jax.lax.stop_gradient(table)),
    )


def _sampled_items(
    apply: Callable[..., jax.Array],
    catalogue: Catalogue,
    loss: LossConfig,
    batch: Batch,
    shown: jax.Array | None,
) -> StepItems:
    history, negative_ids, log_counts = batch["history"], batch["negatives"], batch["log_counts"]

    def embed(ids: jax.Array) -> jax.Array:
        return apply("embed", ids, catalogue)

    def against_sample(
        vectors: jax.Array,
        positives: jax.Array,
        negatives: jax.Array,
        own: jax.Array | None,
        targets: jax.Array,
        weights: jax.Array,
    ) -> jax.Array:
        own_ids = None if own is None else history
        args = vectors, positives, negatives, targets, negative_ids, log_counts, own, own_ids, shown
        return losses.weighted_mean(losses.sampled_softmax(*args, merge=loss.merge), weights)

    def sampled(users: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        positives, negatives = (apply("score_vectors", embed(ids), ids) for ids in (targets, negative_ids))
        own = apply("score_vectors", embed(history), history) if loss.window_negatives else None
        return against_sample(users, positives, negatives, own, targets, weights)

    def embedding_sampled(vectors: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        positives, negatives = jax.lax.stop_gradient((embed(targets), embed(negative_ids)))
        return against_sample(vectors, positives, negatives, None, targets, weights)

    return StepItems(embed, sampled, embedding_sampled)


def expected_item(
    queries: jax.Array, table: jax.Array, is_item: jax.Array, seen: Seen | None, *, chunk: int
) -> jax.Array:
    """Mean of the items that a query names: their vectors weighted by its softmax over the catalogue, [Q, D].

    queries: [Q, D]; table: [R, D]; is_item: [R]. What `seen` has shown has no share; where nothing else is left the
    mean is zero. With a positive `chunk` so many queries are answered at a time, and again in the backward pass.
    """

    first = None if seen is None else seen.first(len(table))

    def mean(part: tuple[jax.Array, ...]) -> jax.Array:
        queries, *behind = part
        allowed = is_item[None]
        if seen is not None:
            allowed = Seen(seen.history, *behind).allowed(first, is_item, jnp.full(len(queries), -1))
        return masked_softmax(jnp.einsum("qd,rd->qr", queries, table), allowed) @ table

    parts = (queries,) if seen is None else (queries, seen.window, seen.place)
    if chunk == 0:
        return mean(parts)

    def cut(a: jax.Array) -> jax.Array:
        return jnp.pad(a, ((0, -len(a) % chunk),) + ((0, 0),) * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:])

    return jax.lax.map(jax.checkpoint(mean), jax.tree.map(cut, parts)).reshape(-1, table.shape[1])[: len(queries)]


def next_items(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Targets at every position int32 [B, L] (what came next; an item also where nothing counts) and weights [B, L]."""
    targets = jnp.concatenate([batch["history"][:, 1:], batch["target"][:, None]], axis=1)
    return jnp.maximum(targets, 1), (batch["history"] > 0) * batch["weight"][:, None]
