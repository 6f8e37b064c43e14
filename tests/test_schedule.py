"""Noise schedules: the paper's formula, the bound on the final abar, what follows from beta."""

import numpy as np
import pytest

from t2diff_jax.diffusion.schedule import make_schedule

NAMES = ("exponential", "linear", "logarithmic")


def make(name="exponential", steps=50, scale=0.01, rate=4.5):
    return make_schedule(name, steps=steps, scale=scale, rate=rate)


def test_the_papers_schedule_is_the_closed_form():
    s = make()
    assert s.steps == 50
    beta = [0.01 * np.exp(4.5 * i / 50) for i in range(1, 51)]
    np.testing.assert_allclose(s.beta[1:], beta, rtol=1e-6)
    np.testing.assert_allclose(s.beta[np.array([1, 25, 50])], [0.0109417428, 0.0948773584, 0.900171313], rtol=1e-6)
    abar = 1.0
    for r, b in enumerate(beta, start=1):
        abar *= 1 - b
        np.testing.assert_allclose(s.abar[r], abar, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50, 200])
def test_every_schedule_ends_in_noise(name, steps):
    s = make(name, steps)
    beta, alpha, abar = (np.asarray(a, np.float64) for a in s)
    assert beta.shape == alpha.shape == abar.shape == (steps + 1,)
    assert (beta[0], alpha[0], abar[0]) == (0, 1, 1)
    assert abar[-1] < 1e-3
    assert np.all(np.diff(abar[abar > 1e-30]) < 0) and np.all(np.diff(abar) <= 0)
    assert np.all(np.diff(beta) >= 0) and beta[1] > 0 and beta[-1] < 1
    np.testing.assert_allclose(alpha, 1 - beta, atol=1e-6)
    np.testing.assert_allclose(abar, np.cumprod(alpha), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("name", NAMES)
def test_rescaling_raises_every_alpha_to_one_power(name):
    """T = 2, unscaled by hand: the exponential betas are .01 e^2.25 and .01 e^4.5, for the others the ends as well."""
    raw = np.log([1 - 0.01 * np.exp(2.25), 1 - 0.01 * np.exp(4.5)])
    powers = np.log(np.asarray(make(name, 2).alpha[1:], np.float64)) / raw
    np.testing.assert_allclose(powers, powers[0], rtol=1e-4)
    assert powers[0] > 1


def test_the_alternatives_share_the_end_points_and_their_shape():
    exponential, linear, logarithmic = (np.asarray(make(name, 50).beta[1:], np.float64) for name in NAMES)
    for other in (linear, logarithmic):
        np.testing.assert_allclose(other[[0, -1]], exponential[[0, -1]], rtol=1e-5)
    np.testing.assert_allclose(np.diff(linear), (linear[-1] - linear[0]) / 49, rtol=1e-4)
    share = (logarithmic - logarithmic[0]) / (logarithmic[-1] - logarithmic[0])
    np.testing.assert_allclose(share, np.log(np.arange(1, 51)) / np.log(50), atol=1e-5)
    assert np.all(exponential[1:-1] < linear[1:-1]) and np.all(linear[1:-1] < logarithmic[1:-1])


def test_what_cannot_be_a_schedule():
    with pytest.raises(ValueError, match=r"unknown schedule 'cosine': exponential, linear or logarithmic"):
        make("cosine")
    with pytest.raises(ValueError, match=r"beta spans \[.*\], outside \(0, 1\)"):
        make(rate=5.0)
    with pytest.raises(ValueError, match=r"outside \(0, 1\)"):
        make(scale=0.0)
