"""The forward process and its posterior: by hand, against Bayes' rule, at the ends of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2diff_jax.diffusion.process import drift, posterior, q_sample
from t2diff_jax.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("exponential", steps=50, scale=0.01, rate=4.5)
SHORT = make_schedule("exponential", steps=5, scale=0.01, rate=4.5)


def constant(value, batch=1):
    return jnp.full((batch, 1, 1), value, jnp.float32)


def test_drift_by_hand():
    history = jnp.array([[[1.0, 0.0], [3.0, 1.0], [2.0, 5.0]]])
    z0 = drift(history, jnp.array([[7.0, 7.0]]))
    np.testing.assert_array_equal(z0, [[[2, 1], [-1, 4], [5, 2]]])
    # What it is for: the last behaviour plus the last drift is the target.
    np.testing.assert_array_equal(history[:, -1] + z0[:, -1], [[7, 7]])
    np.testing.assert_array_equal(drift(history[:, :1], jnp.array([[7.0, 7.0]])), [[[6, 7]]])


def test_q_sample_by_hand():
    abar = np.prod([1 - 0.01 * np.exp(4.5 * s / 50) for s in range(1, 4)])
    z = q_sample(SCHEDULE, constant(2.0), jnp.array([3]), constant(-1.0))
    np.testing.assert_allclose(z[0, 0, 0], 2 * np.sqrt(abar) - np.sqrt(1 - abar), rtol=1e-6)


def test_q_sample_per_row_and_at_the_ends():
    z0, noise = constant(2.0, 3), constant(-1.0, 3)
    z = q_sample(SCHEDULE, z0, jnp.array([0, 3, 50]), noise)
    assert z[0, 0, 0] == 2.0
    np.testing.assert_allclose(z[2, 0, 0], -1.0, atol=1e-3)
    one = q_sample(SCHEDULE, z0, jnp.array([3]), noise)
    np.testing.assert_array_equal(one[0], z[1])


def gaussian(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize(("schedule", "r"), [(SCHEDULE, r) for r in (2, 3, 25, 49, 50)] + [(SHORT, 2), (SHORT, 5)])
def test_posterior_is_bayes_rule(schedule, r):
    """q(z_{r-1} | z_r, z_0) on a grid: prior q(z_{r-1} | z_0) times likelihood q(z_r | z_{r-1})."""
    z0, z_r = 0.7, -0.4
    beta, _, abar = (np.asarray(a, np.float64) for a in schedule)
    grid = np.linspace(-9, 9, 200_001)
    density = gaussian(grid, np.sqrt(abar[r - 1]) * z0, 1 - abar[r - 1])
    density *= gaussian(z_r, np.sqrt(1 - beta[r]) * grid, beta[r])
    density /= density.sum()
    mean = (grid * density).sum()
    variance = ((grid - mean) ** 2 * density).sum()
    got_mean, got_variance = posterior(schedule, constant(z0), constant(z_r), jnp.array([r]))
    np.testing.assert_allclose(got_mean[0, 0, 0], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got_variance[0, 0, 0], variance, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 50, 200])
def test_the_first_step_leads_back_to_z0(steps):
    schedule = make_schedule("exponential", steps=steps, scale=0.01, rate=4.5)
    mean, variance = posterior(schedule, constant(0.7), constant(-40.0), jnp.array([1]))
    np.testing.assert_allclose(mean[0, 0, 0], 0.7, rtol=1e-4)
    assert variance[0, 0, 0] == 0


@pytest.mark.parametrize("name", ["exponential", "linear", "logarithmic"])
def test_gradients_are_finite_at_both_ends(name):
    schedule = make_schedule(name, steps=200, scale=0.01, rate=4.5)
    r = jnp.array([1, 200])

    def total(z0, z):
        mean, _ = posterior(schedule, z0, q_sample(schedule, z0, r, z), r)
        return mean.sum()

    for gradient in jax.grad(total, argnums=(0, 1))(constant(0.5, 2), constant(-1.0, 2)):
        assert np.isfinite(gradient).all()
