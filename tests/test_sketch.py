"""The history sketch: what it takes from the scores of the user's items, and that it leaves the others alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import PLAIN, drawn, float64, make_batch, make_catalogue, normal, small_config

from t2diff_jax.models import build_retriever
from t2diff_jax.nn.sketch import _GAIN, HistorySketch

B, P, L, U, S, ROWS = 3, 2, 4, 3, 5, 9
USERS, SCORED = jnp.asarray(normal(1, B, P, U)), jnp.asarray(normal(2, B, L, U))
IDS = jnp.array([[1, 2, 3, 4], [0, 0, 5, 5], [0, 0, 0, 0]])
MASK = jnp.asarray((np.asarray(IDS) > 0)[:, None] & np.array([[[1, 1, 1, 0], [1, 1, 1, 1]]], bool))
NET = HistorySketch(rows=ROWS, width=S, dropout=0.5)


@pytest.fixture(scope="module")
def params():
    return drawn(functools.partial(NET.init, deterministic=True), USERS, SCORED, IDS, MASK)


def sketch(params, users=USERS, scored=SCORED, ids=IDS, mask=MASK, net=NET):
    return jax.jit(functools.partial(net.apply, {"params": params}, deterministic=True))(users, scored, ids, mask)


def test_against_a_loop(params):
    p, users, scored = float64(params), float64(USERS), float64(SCORED)
    expected = np.zeros((B, P, S))
    for b, i, j in np.ndindex(B, P, L):
        if MASK[b, i, j]:
            threshold = users[b, i] @ p["threshold"]["kernel"][:, 0] + p["threshold"]["bias"][0]
            weight = 1 / (1 + np.exp(threshold - p["scale"] * users[b, i] @ scored[b, j]))
            expected[b, i] -= p["strength"] * weight * _GAIN * p["signature_table"][IDS[b, j]]
    np.testing.assert_allclose(sketch(params), expected, atol=1e-5)


def test_it_takes_from_the_items_of_the_history_alone():
    """Orthonormal signatures, open gate, strength 3: an item loses 3 for each time that the user had it."""
    table = jnp.eye(ROWS) / _GAIN
    threshold = {"kernel": jnp.zeros((U, 1)), "bias": jnp.array([-1e3])}
    params = {"signature_table": table, "scale": jnp.array(1.0), "strength": jnp.array(3.0), "threshold": threshold}
    net = HistorySketch(rows=ROWS, width=ROWS, dropout=0.5)
    signatures = net.apply({"params": params}, None, method="signatures")
    taken = np.asarray(sketch(params, net=net) @ signatures.T)
    times = np.zeros((B, P, ROWS))
    for b, i, j in np.ndindex(B, P, L):
        times[b, i, IDS[b, j]] += MASK[b, i, j]
    np.testing.assert_allclose(taken, -3 * times, atol=1e-5)


def test_signatures_of_some_are_rows_of_those_of_all(params):
    def signatures(ids):
        return np.asarray(NET.apply({"params": params}, ids, method="signatures"))

    np.testing.assert_array_equal(signatures(IDS), signatures(None)[np.asarray(IDS)])


def test_masked_behaviours_do_not_count_and_an_empty_history_is_zero(params):
    before = np.asarray(sketch(params))
    seen = np.asarray(MASK).any(axis=1)
    garbage = jnp.where(seen[..., None], SCORED, 1e6)
    np.testing.assert_array_equal(sketch(params, scored=garbage, ids=jnp.where(seen, IDS, 7)), before)
    assert not before[2].any() and before[:2].any(axis=-1).all()


def test_gradients_are_finite_and_reach_everything(params):
    def total(params, users, scored):
        return (NET.apply({"params": params}, users, scored, IDS, MASK, deterministic=True) ** 2).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    for size in (1.0, 1e4):
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient(params, size * USERS, size * SCORED)))
    assert all(np.any(g) for g in jax.tree.leaves(gradient(params, USERS, SCORED)))


def test_training_drops_dimensions_of_a_row_after_all_behaviours_alike(params):
    """What stays is divided by the share that stays, so that its mean over draws is the sketch itself."""
    whole, rows = np.asarray(sketch(params)), np.arange(B - 1)  # the last row has no history
    net = HistorySketch(rows=ROWS, width=S, dropout=0.25)

    @jax.jit
    @jax.vmap
    def draws(key):
        args = USERS, SCORED, IDS, MASK
        return net.apply({"params": params}, *args, deterministic=False, rngs={"dropout": key})

    dropped = np.asarray(draws(jax.random.split(jax.random.key(0), 400)))
    kept = (dropped != 0)[:, rows]
    np.testing.assert_array_equal(kept[:, :, 0], kept[:, :, 1])
    np.testing.assert_allclose(dropped, np.where(dropped != 0, whole / 0.75, 0), rtol=1e-5)
    np.testing.assert_allclose(kept.mean(axis=0), 0.75, atol=0.1)
    assert kept[:, 0].tolist() != kept[:, 1].tolist()  # each row its own


# One of each way to the sketch.
MODELS = ["t2diff_causal", "sasrec", "bert4rec", "stosa", "contrast_vae", "diffurec", "two_tower", "comirec_sa"]


@pytest.mark.parametrize("name", MODELS)
def test_the_sketch_of_a_model_is_dropped_in_training(name):
    """With other randomness fixed, the loss with dropout is another; serving never drops."""
    changes = dict(model__name=name, model__slot="empty", model__sketch_dim=4)
    key, catalogue, batch = jax.random.key(0), make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    losses, users = [], []
    for rate in (0.0, 0.5):
        retriever = build_retriever(small_config(**changes, model__sketch_dropout=rate), PLAIN)
        variables = retriever.init(jax.random.key(1), catalogue, batch)
        losses.append(jax.jit(retriever.loss)(variables, catalogue, batch, key)[0])
        users.append(np.asarray(jax.jit(retriever.encode_user)(variables, catalogue, batch, key)[0]))
    assert losses[0] != losses[1] and np.isfinite(losses).all()
    np.testing.assert_array_equal(*users)
