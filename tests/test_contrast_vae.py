"""ContrastVAE: the contrast by hand, what the losses are made of, causality of a view, gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import ITEMS, SIZES, drawn, make_batch, make_catalogue, named_leaves, normal, small_config

from t2diff_jax.models import build_retriever, contrast_vae
from t2diff_jax.models.contrast_vae import contrast_of

CATALOGUE, BATCH = make_catalogue(), make_batch()
VALID = np.asarray(BATCH["history"]) > 0


@pytest.fixture(scope="module")
def vae():
    """The retriever, its variables, compiled (params, batch) -> ((loss, metrics), gradient) and -> two views."""
    weights = dict(model__contrast_vae__kl_weight=0.3, model__contrast_vae__contrast_weight=0.7)
    retriever = build_retriever(small_config(model__name="contrast_vae", model__sketch_dim=4, **weights), SIZES)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {}}

    @jax.jit
    def learn(params, batch):
        def loss(params):
            return retriever.loss({"params": params, "stats": {}}, CATALOGUE, batch, jax.random.key(0))

        return jax.value_and_grad(loss, has_aux=True)(params)

    @jax.jit
    def views(params, batch):
        x = retriever.net.apply({"params": params}, batch["history"], CATALOGUE, method="embed")

        def view(key):
            streams = dict(zip(("dropout", "latent"), jax.random.split(key), strict=True))
            return retriever.net.apply({"params": params}, x, batch, method="view", rngs=streams)

        return [view(key) for key in jax.random.split(jax.random.key(0))]

    return types.SimpleNamespace(retriever=retriever, variables=variables, learn=learn, views=views)


def test_contrast_by_hand():
    """Two windows, one place: own view at cosine 1, the other's at 0; then the other window does not count."""
    a, weights = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]]), jnp.ones((2, 1))
    np.testing.assert_allclose(contrast_of(a, 3 * a, weights, 1.0), np.full((2, 1), np.log1p(np.exp(-1))), rtol=1e-6)
    alone = contrast_of(a, a, jnp.array([[1.0], [0.0]]), 1.0)
    np.testing.assert_allclose(alone[0], [0], atol=1e-6)


def test_contrast_against_numpy():
    a, b, weights = normal(0, 4, 3, 5), normal(1, 4, 3, 5), np.random.default_rng(2).random((4, 3)) < 0.7
    unit_a, unit_b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    expected = np.zeros((4, 3))
    for i, j in np.ndindex(4, 3):
        others = [k for k in range(4) if k == i or weights[k, j]]
        there = np.exp(unit_a[i, j] @ unit_b[others, j].T / 0.3)
        back = np.exp(unit_b[i, j] @ unit_a[others, j].T / 0.3)
        own = np.exp(unit_a[i, j] @ unit_b[i, j] / 0.3)
        expected[i, j] = -(np.log(own / there.sum()) + np.log(own / back.sum())) / 2
    got = contrast_of(*map(jnp.asarray, (a, b, weights.astype(np.float32))), 0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_loss_is_made_of_two_views(vae):
    (loss, (metrics, _)), _ = vae.learn(vae.variables["params"], BATCH)
    views, table = vae.views(vae.variables["params"], BATCH), vae.retriever.encode_items(vae.variables, CATALOGUE)
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    counted = np.argwhere(VALID & (np.asarray(BATCH["weight"]) > 0)[:, None])
    terms, divergence = [], []
    for view in views:
        scores = np.asarray(view.users)[:, :, 0] @ np.asarray(table).T
        mean, log_variance = (np.asarray(a, np.float64) for a in (view.mean, view.log_variance))
        for b, j in counted:
            terms.append(reference.cross_entropy(scores[b, j, 1 : ITEMS + 1], following[b, j] - 1))
            m, v = mean[b, j], np.exp(log_variance[b, j])
            divergence.append(np.mean(-np.log(v) / 2 + (v + m**2) / 2 - 1 / 2))
    np.testing.assert_allclose(metrics["loss_tower"], np.mean(terms), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_divergence"], np.mean(divergence), rtol=1e-4)
    parts = 0.3 * metrics["loss_divergence"] + 0.7 * metrics["loss_contrast"]
    np.testing.assert_allclose(loss, metrics["loss_tower"] + parts, rtol=1e-5)
    assert np.any(np.asarray(views[0].latent) != np.asarray(views[1].latent))
    np.testing.assert_allclose(views[0].mean, views[1].mean, rtol=1e-5, atol=1e-6)  # dropout is 0


def test_the_contrast_is_between_the_two_views(vae, monkeypatch):
    seen = []
    monkeypatch.setattr(contrast_vae, "contrast_of", lambda a, b, weights, t: seen.extend((a, b)) or 0 * weights)
    vae.retriever.loss(vae.variables, CATALOGUE, BATCH, jax.random.key(0))
    one, other = seen
    assert one.shape == other.shape and np.abs(one - other).max() > 0.1


def test_a_latent_is_drawn_around_its_mean(vae):
    one, other = vae.views(vae.variables["params"], BATCH)
    standard = np.asarray((one.latent - one.mean) / jnp.exp(one.log_variance / 2))
    assert abs(standard.mean()) < 0.3 and abs(standard.std() - 1) < 0.2
    assert np.abs(np.asarray(other.latent - one.latent)).max() > 0.1


def test_a_view_sees_no_later_behaviour(vae):
    before = np.asarray(vae.views(vae.variables["params"], BATCH)[0].users)
    for j in range(VALID.shape[1]):
        history = BATCH["history"].at[:, j].set(np.where(VALID[:, j], 1 + BATCH["history"][:, j] % ITEMS, 0))
        after = np.asarray(vae.views(vae.variables["params"], {**BATCH, "history": history})[0].users)
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.all(np.any(before[VALID[:, j], j:] != after[VALID[:, j], j:], axis=-1))


def test_the_user_is_decoded_from_the_means(vae):
    encode = jax.jit(lambda v, key: vae.retriever.encode_user(v, CATALOGUE, BATCH, key))
    users, mask = encode(vae.variables, jax.random.key(0))
    assert users.shape == (5, 1, 8 + 4) and mask.all()
    np.testing.assert_array_equal(users, encode(vae.variables, jax.random.key(1))[0])


def test_gradient_reaches_every_parameter(vae):
    _, gradient = vae.learn(vae.variables["params"], BATCH)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6) != name.endswith("key.bias"), name


def test_an_empty_batch_is_finite(vae):
    empty = {**BATCH, "history": BATCH["history"] * 0, "weight": BATCH["weight"] * 0}
    (loss, _), gradient = vae.learn(vae.variables["params"], empty)
    assert loss == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))
