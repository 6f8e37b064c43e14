"""The diffusion module apart from its network: scale, noising, reverse process, noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import STATS, normal, small_config

from t2diff_jax.models.drift import (
    clean,
    cosine,
    drift_scale,
    generated_item,
    initial_stats,
    leading_to,
    noise_per_intent,
    noise_per_user,
    noised_drift,
    reverse,
    schedule_of,
    training_noise,
    update_drift_scale,
)

KEY = jax.random.key(0)


# The scale


def test_drift_scale_by_hand():
    empty = initial_stats()
    assert drift_scale(empty) == 1
    z0 = jnp.array([[[100.0, 100.0], [1.0, 3.0]], [[2.0, 2.0], [0.0, 0.0]], [[9.0, 9.0], [9.0, 9.0]]])
    mask = jnp.array([[False, True], [True, True], [True, True]])
    weight = jnp.array([1.0, 1.0, 0.0])
    # Mean squares at the valid positions: 5, 4 and 0.
    first = update_drift_scale(empty, z0, mask, weight, 0.9)
    np.testing.assert_allclose([first["drift_square"], first["drift_weight"]], [0.1 * 3, 0.1], rtol=1e-6)
    # Bias-corrected: after one batch it is that batch's value, not a tenth of it.
    np.testing.assert_allclose(drift_scale(first), np.sqrt(3), rtol=1e-6)
    second = update_drift_scale(first, 2 * z0, mask, weight, 0.9)
    square, total = 0.9 * 0.3 + 0.1 * 12, 0.9 * 0.1 + 0.1
    np.testing.assert_allclose([second["drift_square"], second["drift_weight"]], [square, total], rtol=1e-6)
    np.testing.assert_allclose(drift_scale(second), np.sqrt(square / total), rtol=1e-6)
    for nothing in (update_drift_scale(second, z0, mask & False, weight, 0.9),
                    update_drift_scale(second, z0, mask, 0 * weight, 0.9)):  # fmt: skip
        assert nothing == second
    # Identical behaviours everywhere: no division by zero.
    assert drift_scale(update_drift_scale(empty, 0 * z0, mask, weight, 0.9)) > 0


# What is diffused


@pytest.mark.parametrize("target", ["drift", "item"])
def test_what_is_diffused_leads_to_the_next_item(target):
    config = small_config(diffusion__target=target).diffusion
    x, last = jnp.asarray(normal(1, 2, 3, 4)), jnp.asarray(normal(2, 2, 4))
    following = np.concatenate([x[:, 1:], last[:, None]], axis=1)
    z0 = clean(config, x, last)
    np.testing.assert_allclose(z0, following - x if target == "drift" else following, atol=1e-6)
    np.testing.assert_allclose(generated_item(config, x, z0), following, atol=1e-6)
    np.testing.assert_allclose(leading_to(config, x, jnp.asarray(following)), z0, atol=1e-6)


# A draw of training


B, L, D, T = 600, 4, 3, 5
CONFIG = small_config(diffusion__steps=T).diffusion


@pytest.fixture(scope="module")
def draw():
    """(x, target, Noised) of many windows, from statistics of 0.5 at weight 0.5."""
    x, target = jnp.asarray(3 * normal(1, B, L, D)), jnp.asarray(3 * normal(2, B, D))
    batch = {"history": jnp.ones((B, L), jnp.int32), "weight": jnp.ones(B)}
    return x, target, jax.jit(lambda key: noised_drift(CONFIG, STATS, x, target, batch, key))(KEY)


def test_the_drift_is_diffused_in_units_of_its_new_scale(draw):
    x, target, got = draw
    drift = np.concatenate([x[:, 1:] - x[:, :-1], (target - x[:, -1])[:, None]], axis=1)
    square, weight = (0.99 * 0.6 + 0.01 * (drift**2).mean()), 0.99 * 0.5 + 0.01
    np.testing.assert_allclose([got.stats["drift_square"], got.stats["drift_weight"]], [square, weight], rtol=1e-5)
    np.testing.assert_allclose(got.z0, drift / np.sqrt(square / weight), rtol=1e-4, atol=1e-5)


def test_every_r_is_drawn_and_the_noise_is_standard_normal(draw):
    _, _, got = draw
    assert got.r.shape == (B,)
    # Uniform over 1..T: 120 +- 10 each.
    counts = np.bincount(got.r, minlength=T + 1)
    assert counts[0] == 0 and len(counts) == T + 1 and np.all(np.abs(counts[1:] - B / T) < 4 * 10)
    abar = np.asarray(schedule_of(CONFIG).abar)[got.r][:, None, None]
    noise = (got.z_r - np.sqrt(abar) * got.z0) / np.sqrt(1 - abar)
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    # Neither shared between the positions or rows nor tied to r.
    assert np.abs(np.corrcoef(noise.reshape(B, -1).T) - np.eye(L * D)).max() < 0.2
    assert abs(np.corrcoef(got.r, noise[:, 0, 0])[0, 1]) < 0.2


# The reverse process


@pytest.mark.parametrize(("sampler", "steps", "calls"), [("ddpm", T, T), ("ddim", 1, 1), ("ddim", 3, 3)])
def test_reverse_with_a_perfect_estimate(sampler, steps, calls):
    """Whatever the noise, the truth comes out; the estimator is called as often as configured, from r = T on."""
    config = small_config(diffusion__steps=T, diffusion__sampler=sampler, diffusion__sampler_steps=steps).diffusion
    truth, called = jnp.asarray(normal(1, 2, L, D)), []

    def estimate(z, r):
        jax.debug.callback(lambda r: called.append(int(r[0])), r)
        return truth

    z = reverse(config, estimate, training_noise(KEY, truth.shape), None)
    jax.effects_barrier()
    np.testing.assert_allclose(z, truth, atol=1e-5)
    assert len(called) == calls and called[0] == T and called == sorted(set(called), reverse=True)


# Noise


def test_training_noise_is_a_stream_per_r():
    noise = training_noise(KEY, (2, 50, 40))
    a, again, b = (np.asarray(noise(jnp.int32(r))) for r in (1, 1, 2))
    np.testing.assert_array_equal(a, again)
    for x in (a, b):
        assert abs(x.mean()) < 0.1 and abs(x.std() - 1) < 0.05
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    assert np.any(a != np.asarray(training_noise(jax.random.key(1), a.shape)(jnp.int32(1))))


def test_noise_per_intent_is_the_same_for_everyone():
    """And its own for every intent and r; standard normal."""

    def draw(intent, r, shape=(3, 2, 5000)):
        return np.asarray(noise_per_intent(jnp.int32(intent), shape)(jnp.int32(r)))

    first = draw(0, 6)
    assert np.all(first == first[:1, :1])
    np.testing.assert_array_equal(draw(0, 6, (7, 1, 5000))[:1], first[:1, :1])
    np.testing.assert_allclose([first.mean(), first.std()], [0, 1], atol=0.05)
    for other in (draw(1, 6), draw(0, 5)):
        assert abs(np.corrcoef(first[0, 0], other[0, 0])[0, 1]) < 0.05


def test_noise_per_user_is_named_by_request_intent_and_r():
    keys = jax.random.split(KEY, 3)

    def draw(keys=keys, intent=0, r=1, length=6):
        return np.asarray(noise_per_user(keys, jnp.int32(intent), (len(keys), length, 40))(jnp.int32(r)))

    first = draw()
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(draw(keys[order]), first[order])
    np.testing.assert_array_equal(draw(keys[1:2]), first[1:2])
    # A longer window leaves the noise of the newest behaviours as it is.
    np.testing.assert_array_equal(draw(length=9)[:, 3:], first)
    others = [draw(intent=1), draw(intent=2), draw(r=2), draw(intent=2, r=2)]
    streams = np.stack([x.ravel() for x in [*first, *np.concatenate(others)]])
    assert np.abs(np.corrcoef(streams) - np.eye(len(streams))).max() < 0.3
    assert abs(first.mean()) < 0.15 and abs(first.std() - 1) < 0.1


def test_cosine_by_hand():
    a = jnp.array([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = jnp.array([[3.0, 4.0], [0.0, 2.0], [-2.0, -2.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosine(a, b), [1, 0, -1, 0], atol=1e-6)
