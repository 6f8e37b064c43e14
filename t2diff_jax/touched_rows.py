"""A training step on the rows of item tables that its batch touches, as if the catalogue held nothing else.

Whatever has a row per item (tables, moments, averages, what is known of the items) is cut to the touched rows, ids in
the batch become places among them, and what the step changed is written back. So an optimiser works on O(batch) rows,
whatever its rule; rows that no batch names keep everything as it is, moments and averages too (as "lazy" Adam).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from t2diff_jax.sharding import has_item_rows
from t2diff_jax.types import Batch, Catalogue, Retriever

_NAMES_ITEMS = ("history", "target", "negatives")  # keys of a batch whose values are item ids, whose rows a step needs


def touched_rows(batch: Batch, n_rows: int) -> Int[Array, " K"]:
    """The ids in a batch and 0, each once, ascending; filled up with ids that no row has, from `n_rows` on."""
    named = [jnp.zeros(1, jnp.int32), *(batch[name].reshape(-1) for name in _NAMES_ITEMS if name in batch)]
    ids = jnp.concatenate(named)
    rows = jnp.unique(ids, size=min(len(ids), n_rows), fill_value=n_rows)
    return jnp.where(rows < n_rows, rows, n_rows + jnp.arange(len(rows)))


def cut_rows(tree: Any, rows: Int[Array, " K"]) -> Any:
    """A tree of the train state with K rows in every leaf that has a row per item; filling holds any row."""

    def cut(path: tuple, leaf: Array) -> Array:
        return jnp.take(leaf, rows, axis=0, mode="clip") if has_item_rows(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(cut, tree)


def put_rows(tree: Any, changed: Any, rows: Int[Array, " K"]) -> Any:
    """The inverse of `cut_rows`: of leaves with a row per item only `rows` are changed, all other leaves are new."""

    def put(path: tuple, leaf: Array, new: Array) -> Array:
        if not has_item_rows(path, leaf):
            return new
        return leaf.at[rows].set(new, mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.tree_util.tree_map_with_path(put, tree, changed)


def cut_catalogue(catalogue: Catalogue, rows: Int[Array, " K"]) -> Catalogue:
    """What is known of the touched items. N stays: it says how many items negatives are drawn from."""
    return jax.tree.map(lambda a: jnp.take(a, rows, axis=0, mode="clip"), catalogue)


def cut_batch(batch: Batch, rows: Int[Array, " K"]) -> Batch:
    """The batch with places among the rows for item ids; 0 stays 0, and so becomes what lies before and has no row."""
    places = {name: jnp.searchsorted(rows, batch[name]).astype(jnp.int32) for name in _NAMES_ITEMS if name in batch}
    if "before" in batch:
        found = jnp.searchsorted(rows, batch["before"]).astype(jnp.int32)
        places["before"] = jnp.where(rows.at[found].get(mode="clip") == batch["before"], found, 0)
    return {**batch, **places}


def cut_retriever(retriever: Retriever, n_rows: int) -> Retriever:
    """The same model for tables of so many rows."""
    return dataclasses.replace(retriever, sizes=dataclasses.replace(retriever.sizes, rows=n_rows))


def on_touched_rows(step: Callable[..., tuple[Any, Any]], retriever: Retriever) -> Callable[..., tuple[Any, Any]]:
    """(state, catalogue, batch) -> (state, metrics) by way of `step(retriever, state, catalogue, batch)`, cut down."""

    def cut_step(state: Any, catalogue: Catalogue, batch: Batch) -> tuple[Any, Any]:
        rows = touched_rows(batch, catalogue.n_rows)
        parts = cut_rows(state, rows), cut_catalogue(catalogue, rows), cut_batch(batch, rows)
        changed, metrics = step(cut_retriever(retriever, len(rows)), *parts)
        return put_rows(state, changed, rows), metrics

    return cut_step
