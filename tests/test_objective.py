"""Targets at every position. The rest of the objective is tested through the models and the losses."""

import jax.numpy as jnp

from t2diff_jax.models.objective import next_items


def test_next_items_by_hand():
    """A window's behaviours predict what came next; padding and rows of weight 0 count nothing, but name an item."""
    batch = {
        "history": jnp.array([[3, 1, 2], [0, 0, 5], [0, 0, 0], [4, 4, 4]]),
        "target": jnp.array([7, 8, 9, 0]),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]),
    }
    targets, weights = next_items(batch)
    assert targets.tolist() == [[1, 2, 7], [1, 5, 8], [1, 1, 9], [4, 4, 1]]
    assert weights.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
