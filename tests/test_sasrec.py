"""SASRec: causality, padding, its loss by hand, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import ITEMS, SIZES, drawn, make_batch, make_catalogue, named_leaves, put, quick_jit, small_config

from t2diff_jax.models import build_retriever
from t2diff_jax.negatives import with_negatives

RETRIEVER = build_retriever(small_config(model__name="sasrec", model__sketch_dim=4), SIZES)
CATALOGUE, BATCH = make_catalogue(), make_batch()
VALID = np.asarray(BATCH["history"]) > 0


@pytest.fixture(scope="module")
def variables():
    return {"params": drawn(RETRIEVER.init, CATALOGUE, BATCH), "stats": {}}


@quick_jit
def states(variables, batch):
    net, params = RETRIEVER.net, {"params": variables["params"]}
    x = net.apply(params, batch["history"], CATALOGUE, method="embed")
    return net.apply(params, x, batch, deterministic=True, method="user")


@quick_jit
def encode(variables, batch):
    return RETRIEVER.encode_user(variables, CATALOGUE, batch, jax.random.key(0))


@quick_jit
def loss_and_gradient(params, batch):
    def loss(params):
        return RETRIEVER.loss({"params": params, "stats": {}}, CATALOGUE, batch, jax.random.key(0))

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_the_user_is_the_last_state(variables):
    users, mask = encode(variables, BATCH)
    assert users.shape == (5, 1, 8 + 4) and users.dtype == jnp.float32 and mask.all()
    np.testing.assert_allclose(users, states(variables, BATCH)[:, -1], rtol=1e-5, atol=1e-6)


def test_no_state_sees_a_later_behaviour(variables):
    before = np.asarray(states(variables, BATCH))
    for j in range(VALID.shape[1]):
        history = BATCH["history"].at[:, j].set(np.where(VALID[:, j], 1 + BATCH["history"][:, j] % ITEMS, 0))
        after = np.asarray(states(variables, {**BATCH, "history": history}))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.all(np.any(before[VALID[:, j], j:] != after[VALID[:, j], j:], axis=-1))


def test_padding_and_target_change_no_user(variables):
    garbage = put(variables, ("params", "items", "item_table"), lambda x: _filled(x, 1e6))
    garbage = put(garbage, ("params", "items", "category_table"), lambda x: _set(x, [0], -1e6))
    garbage = put(garbage, ("params", "sketch", "signature_table"), lambda x: _filled(x, 1e6))
    batch = {**BATCH, "target": BATCH["target"] * 0 + 3, "weight": BATCH["weight"] * 0, "user": BATCH["user"] + 1}
    np.testing.assert_array_equal(encode(garbage, batch)[0], encode(variables, BATCH)[0])


def _set(x, rows, value):
    x = np.array(x)
    x[rows] = value
    return x


def _filled(x, value):
    """Garbage in the padding row and in the rows above the last item."""
    return _set(x, [0, *range(ITEMS + 1, len(x))], value)


def test_loss_against_numpy(variables):
    """Every valid behaviour predicts the next one, the last one the target; weight 0 and padding count nothing."""
    (loss, (metrics, stats)), _ = loss_and_gradient(variables["params"], BATCH)
    scores = np.asarray(states(variables, BATCH))[:, :, 0] @ np.asarray(RETRIEVER.encode_items(variables, CATALOGUE)).T
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    terms = [
        reference.cross_entropy(scores[b, j, 1 : ITEMS + 1], following[b, j] - 1)
        for b, j in np.argwhere(VALID)
        if BATCH["weight"][b] > 0
    ]
    assert len(terms) == 6 + 4 + 1
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    assert metrics["loss_tower"] == loss and stats == {}


def test_several_vectors(variables):
    """Each is the state plus a linear map of it, with a sketch of its own; together they are a mixture."""
    retriever = build_retriever(
        small_config(model__name="sasrec", model__sketch_dim=4, model__vectors=2, loss__merge="logsumexp"), SIZES
    )
    several = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {}}
    heads = several["params"]["heads"]
    users, mask = quick_jit(lambda v: retriever.encode_user(v, CATALOGUE, BATCH, jax.random.key(0)))(several)
    assert users.shape == (5, 2, 8 + 4) and mask.shape == (5, 2) and mask.all()
    alone = {"params": {name: value for name, value in several["params"].items() if name != "heads"}, "stats": {}}
    state = np.asarray(encode(alone, BATCH)[0])[:, :, :8]
    added = (state @ np.asarray(heads["kernel"]) + np.asarray(heads["bias"])).reshape(5, 2, 8)
    users = np.asarray(users)
    np.testing.assert_allclose(users[:, :, :8], state + added, rtol=1e-4, atol=1e-5)
    assert np.all(np.any(users[VALID[:, -1], 0, 8:] != users[VALID[:, -1], 1, 8:], axis=-1))

    def loss(params):
        return retriever.loss({"params": params, "stats": {}}, CATALOGUE, BATCH, jax.random.key(0))[0]

    def every_user(params):
        x = retriever.net.apply({"params": params}, BATCH["history"], CATALOGUE, method="embed")
        return retriever.net.apply({"params": params}, x, BATCH, deterministic=True, method="user")

    value, gradient = quick_jit(jax.value_and_grad(loss))(several["params"])
    vectors, table = quick_jit(every_user)(several["params"]), retriever.encode_items(several, CATALOGUE)
    scores = np.asarray(vectors) @ np.asarray(table).T
    merged = np.logaddexp(scores[:, :, 0], scores[:, :, 1])[..., 1 : ITEMS + 1]
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    counted = [(b, j) for b, j in np.argwhere(VALID) if BATCH["weight"][b] > 0]
    terms = [reference.cross_entropy(merged[b, j], following[b, j] - 1) for b, j in counted]
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    assert np.any(gradient["heads"]["kernel"]) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_sampled_negatives_estimate_the_full_loss(variables):
    retriever = build_retriever(small_config(model__name="sasrec", model__sketch_dim=4, loss__negatives=3000), SIZES)
    args = BATCH, None, retriever.loss_config, CATALOGUE.n_items
    batch, _ = with_negatives(*args, seed=0, step=jnp.int32(0))
    loss, _ = quick_jit(lambda v: retriever.loss(v, CATALOGUE, batch, jax.random.key(0)))(variables)
    (full, _), _ = loss_and_gradient(variables["params"], BATCH)
    np.testing.assert_allclose(loss, full, rtol=0.03)


def test_gradient_reaches_every_parameter(variables):
    _, gradient = loss_and_gradient(variables["params"], BATCH)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all(), name
        # A constant added to all keys is invisible to the softmax: the key's bias is learned by nobody.
        assert np.any(np.abs(g) > 1e-6) != name.endswith("key.bias"), name


def test_an_empty_batch_is_finite(variables):
    (loss, _), gradient = loss_and_gradient(variables["params"], {**BATCH, "weight": BATCH["weight"] * 0})
    assert loss == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))
    empty = {**BATCH, "history": BATCH["history"] * 0, "weight": BATCH["weight"] * 0 + 1}
    (loss, _), gradient = loss_and_gradient(variables["params"], empty)
    assert loss == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.isfinite(encode(variables, empty)[0]).all()
