"""DiffuRec as a model: what it learns from, causality, the known next items, noise by name, gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import (
    ITEMS,
    SIZES,
    STATS,
    drawn,
    make_batch,
    make_catalogue,
    named_leaves,
    put,
    small_config,
)

from t2diff_jax.models import build_retriever
from t2diff_jax.models import diffurec as module

CATALOGUE, BATCH = make_catalogue(), make_batch()
VALID = np.asarray(BATCH["history"]) > 0
KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def diffurec():
    """A retriever with much mixing, its variables, compiled functions of (variables, batch, key)."""
    changes = dict(model__name="diffurec", model__sketch_dim=4, diffusion__mixing=0.5, diffusion__sampler_steps=3)
    retriever = build_retriever(small_config(**changes), SIZES)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": STATS}

    @jax.jit
    def learn(variables, batch, key):
        def loss(params):
            return retriever.loss({**variables, "params": params}, CATALOGUE, batch, key)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    @jax.jit
    def encode(variables, batch, key):
        return retriever.encode_user(variables, CATALOGUE, batch, key)

    return types.SimpleNamespace(retriever=retriever, variables=variables, learn=learn, encode=encode)


def test_users(diffurec):
    users, mask = diffurec.encode(diffurec.variables, BATCH, KEY)
    assert users.shape == (5, 1, 8 + 4) and users.dtype == jnp.float32 and mask.all() and np.isfinite(users).all()
    assert np.any(users != diffurec.encode(diffurec.variables, BATCH, jax.random.key(3))[0])


def test_target_and_company_change_no_user(diffurec):
    before = np.asarray(diffurec.encode(diffurec.variables, BATCH, KEY)[0])
    other = {**BATCH, "target": BATCH["target"] * 0 + 3, "weight": BATCH["weight"] * 0}
    np.testing.assert_array_equal(before, diffurec.encode(diffurec.variables, other, KEY)[0])
    turned = jax.tree.map(lambda x: x[::-1], BATCH)
    np.testing.assert_allclose(before, diffurec.encode(diffurec.variables, turned, KEY)[0][::-1], rtol=1e-4, atol=1e-5)


def test_every_behaviour_reaches_the_user(diffurec):
    before = np.asarray(diffurec.encode(diffurec.variables, BATCH, KEY)[0])
    for j in range(VALID.shape[1]):
        history = BATCH["history"].at[:, j].set(np.where(VALID[:, j], 1 + BATCH["history"][:, j] % ITEMS, 0))
        after = np.asarray(diffurec.encode(diffurec.variables, {**BATCH, "history": history}, KEY)[0])
        np.testing.assert_array_equal(np.any(after != before, axis=(1, 2)), VALID[:, j])


def test_the_next_items_that_are_known_are_held_at_the_truth(diffurec, monkeypatch):
    """The reverse process generates the last place alone; what followed the others enters in units of its scale."""
    held = []
    monkeypatch.setattr(module, "reverse", lambda config, estimate, noise, known: held.append(known) or known.z0)
    diffurec.retriever.encode_user(diffurec.variables, CATALOGUE, BATCH, KEY)
    (known,) = held
    x = diffurec.retriever.net.apply(diffurec.variables, BATCH["history"], CATALOGUE, method="embed")
    scale = np.sqrt(STATS["drift_square"] / STATS["drift_weight"])
    np.testing.assert_allclose(known.z0[:, :-1], x[:, 1:] / scale, rtol=1e-5)
    assert np.broadcast_to(known.mask, x.shape)[:, :-1].all() and not np.broadcast_to(known.mask, x.shape)[:, -1].any()


def test_without_noise_and_mixing_it_is_a_transformer_with_cross_entropy():
    """Mixing 0: the loss is that of the estimates, which then depend on the behaviours alone; so are the users."""
    changes = dict(model__name="diffurec", diffusion__mixing=0.0, diffusion__sampler_steps=1)
    retriever = build_retriever(small_config(**changes), SIZES)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": STATS}
    loss, _ = jax.jit(lambda v: retriever.loss(v, CATALOGUE, BATCH, KEY))(variables)

    @jax.jit
    def estimates(variables):
        net, params = retriever.net, {"params": variables["params"]}
        x = net.apply(params, BATCH["history"], CATALOGUE, method="embed")
        z = net.apply(params, x, jnp.ones((1, 1), jnp.int32), x, x, BATCH, deterministic=True, method="estimate")
        return net.apply(params, z, x, BATCH, deterministic=True, method="user_of_states")[:, :, 0]

    table = np.asarray(retriever.encode_items(variables, CATALOGUE))
    scores = np.asarray(estimates(variables)) @ table.T
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    counted = np.argwhere(VALID & (np.asarray(BATCH["weight"]) > 0)[:, None])
    terms = [reference.cross_entropy(scores[b, j, 1 : ITEMS + 1], following[b, j] - 1) for b, j in counted]
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-4)
    users, _ = retriever.encode_user(variables, CATALOGUE, BATCH, KEY)
    np.testing.assert_allclose(users[:, 0], estimates(variables)[:, -1], rtol=1e-4, atol=1e-5)


def test_training_mixes_in_what_follows(diffurec):
    """The target is mixed in at the last place of its window: another one changes the loss and the scale."""
    batch = {**BATCH, "weight": jnp.array([1.0, 0, 0, 0, 0])}
    (before, (_, stats)), _ = diffurec.learn(diffurec.variables, batch, KEY)
    table = put(
        diffurec.variables["params"], ("items", "item_table"), lambda t: jnp.asarray(t).at[batch["target"][0]].add(5.0)
    )
    (after, (_, moved)), _ = diffurec.learn({**diffurec.variables, "params": table}, batch, KEY)
    assert before != after and moved["drift_square"] > stats["drift_square"]
    assert stats["drift_weight"] > STATS["drift_weight"]


def test_gradient_reaches_every_parameter(diffurec):
    _, gradient = diffurec.learn(diffurec.variables, BATCH, KEY)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6) != name.endswith("key.bias"), name


def test_an_empty_batch_is_finite(diffurec):
    empty = {**BATCH, "history": BATCH["history"] * 0, "weight": BATCH["weight"] * 0}
    (loss, (_, stats)), gradient = diffurec.learn(diffurec.variables, empty, KEY)
    assert loss == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert stats["drift_square"] == STATS["drift_square"]
    assert np.isfinite(diffurec.encode(diffurec.variables, empty, KEY)[0]).all()
