"""Item and user-feature embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import ITEMS, PLAIN, SIZES, drawn, make_catalogue, normal, put, small_config

from t2diff_jax.models.objective import item_embedding
from t2diff_jax.nn.embeddings import BehaviourDropout, ItemEmbedding, UserFeatures, is_item
from t2diff_jax.types import Catalogue

HAND = {
    "item_table": jnp.array([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [8.0, 8.0]]),
    "category_table": jnp.array([[7.0], [10.0], [20.0]]),
    "content": {"kernel": jnp.array([[2.0], [1.0]])},
}


def hand_case():
    """Three items, one row of filling; item 1 has both categories, item 2 one, item 3 none."""
    net = ItemEmbedding(rows=5, dim=4, categories=3, category_dim=1, content_dim=1, init_sd=1.0)
    catalogue = Catalogue(
        counts=jnp.ones(5),
        categories=jnp.array([[0, 0], [1, 2], [0, 2], [0, 0], [0, 0]]),
        content=jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 3.0], [0.5, 0.0], [0.0, 0.0]]),
        n_items=3,
    )
    return net, catalogue


def both(net, catalogue):
    """Compiled (params, ids) -> (looked-up vectors, the table)."""

    @jax.jit
    def run(params, ids):
        params = {"params": params}
        return net.apply(params, ids, catalogue), net.apply(params, catalogue, method="table")

    return run


def test_items_by_hand():
    run = both(*hand_case())
    rows = [[0, 0, 0, 0], [1, 2, 15, 3], [3, 4, 20, 3], [5, 6, 0, 1]]
    e, table = run(HAND, np.array([[1, 0], [2, 3]]))
    np.testing.assert_allclose(e, np.array(rows)[[[1, 0], [2, 3]]])
    np.testing.assert_allclose(table, [*rows, [0, 0, 0, 0]])
    np.testing.assert_array_equal(is_item(hand_case()[1]), [False, True, True, True, False])


@pytest.mark.parametrize("sizes", [SIZES, PLAIN])
def test_the_table_is_the_lookup_of_every_item(sizes):
    net, catalogue = item_embedding(small_config().model, sizes), make_catalogue(sizes)
    ids = np.arange(sizes.rows)
    params = drawn(net.init, ids, catalogue)
    e, table = map(np.asarray, both(net, catalogue)(params, ids))
    assert e.shape == (sizes.rows, 8)
    np.testing.assert_allclose(e[: ITEMS + 1], table[: ITEMS + 1], rtol=1e-6)
    assert not np.any(table[ITEMS + 1 :]) and not np.any(table[0])
    # Without categories and content their width goes to the ids.
    assert params["item_table"].shape == (sizes.rows, 4 if sizes is SIZES else 8)


def test_padding_rows_are_never_read():
    run = both(*hand_case())
    other = put(HAND, ("item_table",), lambda x: x.at[jnp.array([0, 4])].set(-1e6))
    other = put(other, ("category_table",), lambda x: x.at[0].set(1e6))
    for a, b in zip(run(HAND, np.arange(4)), run(other, np.arange(4)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients():
    """Each id's row gets what its looked-up vectors get; padding gets nothing; an item without categories is finite."""
    net, catalogue = hand_case()
    gradient = jax.jit(jax.grad(lambda p: net.apply({"params": p}, jnp.array([0, 3, 3, 1]), catalogue).sum()))(HAND)
    np.testing.assert_array_equal(gradient["item_table"], [[0, 0], [1, 1], [0, 0], [2, 2], [0, 0]])
    np.testing.assert_allclose(gradient["category_table"], [[0], [0.5], [0.5]])
    np.testing.assert_allclose(gradient["content"]["kernel"], [[2.0], [1.0]])


def test_initial_scale():
    net = ItemEmbedding(rows=4000, dim=4, categories=0, category_dim=0, content_dim=0, init_sd=0.3)
    catalogue = Catalogue(jnp.ones(4000), None, None, 3999)
    table = jax.jit(net.init)(jax.random.key(0), np.array([1]), catalogue)["params"]["item_table"]
    np.testing.assert_allclose(np.std(table), 0.3, rtol=0.03)


def test_user_features_by_hand():
    net = UserFeatures(sizes=(2, 3), dim=2, init_sd=1.0)
    tables = {"table_0": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "table_1": jnp.arange(6.0).reshape(3, 2) * 10}
    out = jax.jit(net.apply)({"params": tables}, np.array([[1, 0], [0, 2]]))
    np.testing.assert_array_equal(out, [[3, 4, 0, 10], [1, 2, 40, 50]])
    fresh = drawn(net.init, np.array([[1, 0]]))
    assert {k: v.shape for k, v in fresh.items()} == {"table_0": (2, 2), "table_1": (3, 2)}


def test_behaviours_are_hidden_in_training():
    """A quarter of them, others each time; one vector stands for all, padding stays; its gradient counts the hidden."""
    net, blank = BehaviourDropout(0.25, 1.0), jnp.array([8.0, 9.0])
    history = jnp.asarray(np.arange(200) >= np.array([[0], [50], [200]]), jnp.int32)
    x = jnp.asarray(normal(0, 3, 200, 2)) * history[..., None]

    def hide(blank, seed):
        streams = {"dropout": jax.random.key(seed)}
        return net.apply({"params": {"blank": blank}}, x, history, deterministic=False, rngs=streams)

    hidden = [np.all(np.asarray(hide(blank, seed)) == np.asarray(blank), axis=-1) for seed in (0, 1)]
    assert all(abs(h.sum() / 350 - 0.25) < 0.08 for h in hidden) and np.any(hidden[0] != hidden[1])
    for seed, h in enumerate(hidden):
        np.testing.assert_array_equal(np.asarray(hide(blank, seed))[~h], np.asarray(x)[~h])
        assert not np.any(h & (np.asarray(history) == 0))
        np.testing.assert_allclose(jax.grad(lambda b, s: hide(b, s).sum())(blank, seed), [h.sum()] * 2)
    assert net.apply({"params": {"blank": blank}}, x, history, deterministic=True) is x
