"""The reverse process with fake denoisers: an oracle, a naive loop, a Gaussian prior whose posterior mean is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import normal

from t2diff_jax.diffusion.samplers import Known, ddim, ddpm, sampling_steps
from t2diff_jax.diffusion.schedule import make_schedule

STEPS, SHAPE = 8, (3, 4, 2)
SCHEDULE = make_schedule("exponential", steps=STEPS, scale=0.01, rate=4.5)
BETA = np.asarray(SCHEDULE.beta, np.float64)
Z0 = jnp.asarray(normal(1, *SHAPE))


def make_noise(seed=0, shape=SHAPE, steps=STEPS):
    """A table in place of a random stream: row r is the noise named r."""
    table = jnp.asarray(normal(100 + seed, steps + 3, *shape))
    return lambda r: table[r]


def sample(estimate, *, calls=0, seed=0, schedule=SCHEDULE, shape=SHAPE, known=None):
    """ddim with `calls` calls, or ddpm."""
    noise = make_noise(seed, shape, schedule.steps)
    sampler = functools.partial(ddim, calls=calls) if calls else ddpm
    return np.asarray(jax.jit(lambda: sampler(schedule, estimate, noise, known=known))())


def pull(z, r):
    """A denoiser that uses both of its arguments."""
    return 0.5 * jnp.tanh(z) + 0.01 * r[:, None, None].astype(z.dtype)


def test_sampling_steps_by_hand():
    assert sampling_steps(50, 1).tolist() == [50]
    assert sampling_steps(50, 4).tolist() == [50, 38, 25, 12]
    assert sampling_steps(5, 5).tolist() == [5, 4, 3, 2, 1]


def test_sampling_steps_descend_from_the_top():
    for steps in range(1, 61):
        assert sampling_steps(steps, steps).tolist() == list(range(steps, 0, -1))
        for calls in range(1, steps + 1):
            r = sampling_steps(steps, calls)
            assert len(r) == calls and r[0] == steps and r[-1] >= 1 and np.all(np.diff(r) < 0) and r.dtype == np.int32


@pytest.mark.parametrize("calls", [0, 6, -1])
def test_impossible_numbers_of_calls(calls):
    with pytest.raises(ValueError, match=rf"{calls} sampler calls: must be in 1..5"):
        sampling_steps(5, calls)


@pytest.mark.parametrize("calls", [0, 1, 2, 3, STEPS])
def test_an_oracle_is_recovered(calls):
    np.testing.assert_allclose(sample(lambda z, r: Z0, calls=calls), Z0, atol=1e-5)


@pytest.mark.parametrize("calls", [0, 1, 3, STEPS])
def test_against_a_naive_loop(calls):
    noise = make_noise()

    def estimate(z, r):
        return np.asarray(pull(jnp.asarray(z, jnp.float32), jnp.array([r])), np.float64)

    def draw(r):
        return np.asarray(noise(r), np.float64)

    if calls:
        expected = reference.ddim(BETA, estimate, draw, sampling_steps(STEPS, calls).tolist())
    else:
        expected = reference.ddpm(BETA, estimate, draw)
    np.testing.assert_allclose(sample(pull, calls=calls), expected, atol=1e-5)


def test_one_ddim_call_is_the_estimate_from_pure_noise():
    start = make_noise()(STEPS + 1)
    np.testing.assert_allclose(sample(pull, calls=1), pull(start, jnp.array([STEPS])), rtol=1e-6)


@pytest.mark.parametrize(("calls", "expected"), [(0, range(STEPS, 0, -1)), (3, [8, 5, 3])])
def test_the_estimator_is_called_once_for_every_r(calls, expected):
    seen = []

    def record(z, r):
        jax.debug.callback(lambda r: seen.extend(r.tolist()), r, ordered=True)
        return jnp.zeros_like(z)

    sample(record, calls=calls)
    jax.effects_barrier()
    assert seen == list(expected)


@pytest.mark.parametrize("calls", [0, 2])
def test_the_key_decides(calls):
    first, again, other = (sample(pull, calls=calls, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_known_positions_end_at_the_truth(calls):
    mask = jnp.array([[True, False, True, False]])[..., None]
    got = np.asarray(sample(pull, calls=calls, known=Known(mask, Z0)))
    np.testing.assert_array_equal(got[:, [0, 2]], np.asarray(Z0)[:, [0, 2]])
    # The denoiser works on each position alone: the others don't notice.
    np.testing.assert_array_equal(got[:, [1, 3]], sample(pull, calls=calls)[:, [1, 3]])


@pytest.mark.parametrize("calls", [0, 2])
def test_the_estimator_sees_known_positions_noised_to_r(calls):
    """A denoiser that copies position 0 to position 1: with 0 known, 1 ends at its last noised value."""
    mask = jnp.array([[True, False, False, False]])[..., None]

    def copy(z, r):
        return jnp.roll(z, 1, axis=1)

    got = np.asarray(sample(copy, calls=calls, known=Known(mask, Z0)))
    last = int(sampling_steps(STEPS, calls)[-1]) if calls else 1
    abar = np.asarray(SCHEDULE.abar)[last]
    noise = np.asarray(make_noise()(STEPS + 2))
    np.testing.assert_allclose(got[:, 1], np.sqrt(abar) * Z0[:, 0] + np.sqrt(1 - abar) * noise[:, 0], atol=1e-5)


def gaussian_estimate(schedule, mean, sd):
    """E[z_0 | z_r] for z_0 ~ N(mean, sd^2)."""

    def estimate(z, r):
        abar = schedule.abar[r][:, None, None]
        gain = jnp.sqrt(abar) * sd**2 / (abar * sd**2 + 1 - abar)
        return mean + gain * (z - jnp.sqrt(abar) * mean)

    return estimate


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.5, 0.4)])
def test_samples_follow_a_gaussian_prior(mean, sd):
    schedule, shape = make_schedule("exponential", steps=500, scale=0.003, rate=4.5), (1, 50, 100)
    estimate = gaussian_estimate(schedule, mean, sd)
    for calls in (0, 500):
        z = np.asarray(sample(estimate, calls=calls, schedule=schedule, shape=shape))
        np.testing.assert_allclose(z.mean(), mean, atol=4 * sd / np.sqrt(z.size))
        np.testing.assert_allclose(z.std(), sd, rtol=0.05)


@pytest.mark.parametrize("calls", [0, 3])
def test_gradients_through_the_sampler_are_finite(calls):
    def total(scale):
        noise = make_noise()

        def estimate(z, r):
            return scale * pull(z, r)

        return (ddim(SCHEDULE, estimate, noise, calls) if calls else ddpm(SCHEDULE, estimate, noise)).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(1.0))
