"""Generators with networks made up for the purpose: what each learns from, by hand, and what it draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import normal, small_config

from t2diff_jax.diffusion.schedule import make_schedule
from t2diff_jax.models.generators import Context, Truth, make_generator

B, L, D, T = 3, 4, 2, 5
KEY = jax.random.key(0)
MASK = jnp.arange(L)[None] >= jnp.array([0, 2, 4])[:, None]
WEIGHT = jnp.array([1.0, 3.0, 1.0])
Z0, X, CONDITION = (jnp.asarray(normal(seed, B, L, D)) for seed in (1, 2, 3))
CONTEXT = Context(X, MASK, CONDITION)


def truth(z0=Z0):
    return Truth(z0, WEIGHT, lambda z: jnp.square(z - 1).sum())


def generator(slot, **changes):
    diffusion = {f"diffusion__{name}": value for name, value in changes.items()}
    return make_generator(slot, small_config(model__name="t2diff_causal", **diffusion).diffusion)


def mean(values):
    """Over the valid positions of each window, then over the windows by weight; the empty one counts 0."""
    rows = [np.asarray(v)[np.asarray(m)].mean() if m.any() else 0 for v, m in zip(values, MASK, strict=True)]
    return np.dot(rows, WEIGHT) / WEIGHT.sum()


def silent(*_):
    raise AssertionError("this network must not be called")


def noise(r):
    return jnp.full((B, L, D), r, jnp.float32)


def test_an_unknown_slot_is_no_generator():
    with pytest.raises(ValueError, match="oracle: not a generator"):
        generator("oracle")


@pytest.mark.parametrize("slot", ["diffusion", "regressor"])
def test_an_estimate_of_the_catalogue_learns_by_cross_entropy(slot):
    """`truth()` has sum (z - 1)^2 in its place."""
    config = dataclasses.replace(small_config().diffusion, estimate="catalogue")
    lesson = make_generator(slot, config).learn(lambda *_: 3 * X, silent, truth(), CONTEXT, KEY)
    np.testing.assert_allclose(lesson.loss, np.square(3 * np.asarray(X) - 1).sum(), rtol=1e-6)
    np.testing.assert_array_equal(lesson.estimate, 3 * X)


def test_diffusion_learns_every_position_from_its_own_r():
    seen = {}

    def apply(method, z, r, condition):
        seen.update(method=method, z=z, r=r)
        return 2 * condition

    lesson = generator("diffusion").learn(apply, silent, truth(), CONTEXT, KEY)
    assert seen["method"] == "denoise" and seen["r"].shape == (B, L) and len(np.unique(seen["r"])) > 2
    assert seen["r"].min() >= 1 and seen["r"].max() <= T
    abar = make_schedule("exponential", steps=T, scale=0.01, rate=4.5).abar[seen["r"]][..., None]
    eps = (seen["z"] - np.sqrt(abar) * Z0) / np.sqrt(1 - abar)
    assert abs(np.mean(eps)) < 0.8 and 0.5 < np.std(eps) < 1.5
    np.testing.assert_array_equal(lesson.estimate, 2 * CONDITION)
    np.testing.assert_allclose(lesson.loss, mean(np.square(Z0 - 2 * CONDITION).mean(-1)), rtol=1e-5)


def test_diffusion_draws_by_the_configured_sampler():
    called = []

    def apply(method, z, r, condition):
        jax.debug.callback(lambda r: called.append(r.item()), r)
        return condition

    drawn = generator("diffusion", sampler_steps=2).draw(apply, CONTEXT, noise)
    jax.effects_barrier()
    np.testing.assert_allclose(drawn, CONDITION, atol=1e-5)
    assert called[0] == T and len(called) == 2


def test_a_regressor_sees_no_noise():
    def apply(method, z, r, condition):
        assert method == "denoise"
        return condition + 100 * z + r.astype(jnp.float32)[..., None]

    regressor = generator("regressor")
    lesson = regressor.learn(apply, silent, truth(), CONTEXT, KEY)
    np.testing.assert_allclose(lesson.estimate, CONDITION + T)
    np.testing.assert_allclose(lesson.loss, mean(np.square(Z0 - CONDITION - T).mean(-1)), rtol=1e-5)
    np.testing.assert_array_equal(regressor.draw(apply, CONTEXT, silent), lesson.estimate)


def test_a_regressor_of_several_intents_is_told_which():
    """By the vector of the intent, when it draws; it learns from none, as ever."""

    def apply(method, z, r, condition):
        return condition + 100 * z

    regressor = generator("regressor", noise="intent")
    np.testing.assert_array_equal(regressor.learn(apply, silent, truth(), CONTEXT, KEY).estimate, CONDITION)
    drawn = regressor.draw(apply, CONTEXT, lambda r: jnp.full_like(CONDITION, r))
    np.testing.assert_allclose(drawn, CONDITION + 100 * (T + 1))


def test_the_bound_of_the_variational_generator():
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2 per dimension, here m = z0, s^2 = e^2."""

    def apply(method, z, r, condition):
        assert r.shape == (1, 1) and r.item() == T
        return jnp.concatenate([z, jnp.full_like(z, 2.0)], axis=-1) if method == "recognise" else z

    vae = generator("vae", kl_weight=0.5)
    lesson = vae.learn(apply, silent, truth(), CONTEXT, KEY)
    divergence = (np.square(Z0) + np.exp(2) - 1 - 2).mean(-1) / 2
    np.testing.assert_allclose(
        lesson.loss, mean(np.square(Z0 - lesson.estimate).mean(-1) + 0.5 * divergence), rtol=1e-5
    )
    assert 0.5 < np.std((lesson.estimate - Z0) / np.e) < 1.5  # the latent is drawn around its mean
    np.testing.assert_array_equal(vae.draw(apply, CONTEXT, noise), noise(T + 1))


def test_the_posterior_at_the_prior_costs_nothing():
    def apply(method, z, r, condition):
        return jnp.zeros((*z.shape[:-1], 2 * D)) if method == "recognise" else Z0

    assert generator("vae").learn(apply, silent, truth(), CONTEXT, KEY).loss == 0


def test_the_players_of_the_adversarial_generator():
    """Judge <z, w>, generator v: the judge learns from the truth and the draw, the generator from fooling it."""

    def play(live, held):
        def network(method, z, r, condition, weights):
            if method == "judge":
                return (z @ weights["w"])[..., None]
            return jnp.broadcast_to(weights["v"], z.shape)

        def apply(*args):
            return network(*args, live)

        def frozen(*args):
            return network(*args, held)

        return generator("gan").learn(apply, frozen, truth(), CONTEXT, KEY).loss

    weights = {"w": jnp.array([0.3, -0.2]), "v": jnp.array([0.5, 1.0])}
    loss, gradient = jax.value_and_grad(play)(weights, jax.tree.map(jax.lax.stop_gradient, weights))
    w, v = np.asarray(weights["w"]), np.asarray(weights["v"])

    def softplus(a):
        return np.log1p(np.exp(a))

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    real, fake = np.asarray(Z0) @ w, np.full((B, L), v @ w)
    np.testing.assert_allclose(loss, mean(softplus(-real) + softplus(fake) + softplus(-fake)), rtol=1e-5)
    for i in range(D):
        expected = mean(-sigmoid(-real) * np.asarray(Z0)[..., i] + sigmoid(fake) * v[i])
        np.testing.assert_allclose(gradient["w"][i], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradient["v"][i], mean(-sigmoid(-fake) * w[i]), rtol=1e-4, atol=1e-6)


def test_diffurec_learns_by_cross_entropy():
    def apply(method, z, r, x, mask, share):
        assert method == "denoise_window" and r.shape == (B, L)
        np.testing.assert_array_equal(mask, MASK)
        return x

    lesson = generator("diffurec").learn(apply, silent, truth(), Context(X, MASK, None), KEY)
    np.testing.assert_allclose(lesson.loss, np.square(X - 1).sum(), rtol=1e-6)


def test_diffurec_draws_from_noise_alone():
    """At every position the first call gets the noise, and the estimate is what the calls come to."""
    seen = []

    def apply(method, z, r, x, mask, share):
        jax.debug.callback(lambda z, r: seen.append((r.item(), z)), z, r)
        return jnp.full_like(x, 3.0)

    drawn = generator("diffurec", sampler="ddpm", sampler_steps=T).draw(apply, Context(X, MASK, None), noise)
    jax.effects_barrier()
    assert [r for r, _ in seen] == list(range(T, 0, -1))
    np.testing.assert_array_equal(seen[0][1], np.broadcast_to(noise(jnp.int32(T + 1)), X.shape))
    np.testing.assert_allclose(drawn, 3.0, rtol=1e-5)
