"""The learning-rate schedule and the optimiser, by hand values."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from t2diff_jax.config import OptimConfig, from_mapping
from t2diff_jax.optim import learning_rate, make_optimizer


def optim(**changes) -> OptimConfig:
    config = base.get_config()
    config.optim.update(learning_rate=0.5, warmup=4, clip_norm=0.0)
    config.optim.update(changes)
    return from_mapping(config).optim


def rates(config, steps, at):
    schedule = learning_rate(config, steps)
    return [float(schedule(step)) for step in at]


def test_warmup_is_linear_from_zero():
    for decay in ("cosine", "constant"):
        assert rates(optim(decay=decay), 100, range(5)) == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])


def test_cosine_ends_at_the_last_step():
    found = rates(optim(), 12, [4, 6, 8, 10, 12, 50])
    half = [0.25 * (1 + math.cos(math.pi * t / 8)) for t in (0, 2, 4, 6, 8)]
    assert found == pytest.approx([*half, 0], abs=1e-7)


def test_cosine_ends_at_decay_steps():
    assert rates(optim(decay_steps=8), 1000, [4, 6, 8, 20]) == pytest.approx([0.5, 0.25, 0, 0], abs=1e-7)
    assert rates(optim(decay_steps=8), 1000, range(9)) == rates(optim(), 8, range(9))


def test_constant_stays():
    assert rates(optim(decay="constant"), 10, [4, 10, 1000]) == [0.5] * 3


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_without_warmup_the_first_step_learns(decay):
    assert rates(optim(decay=decay, warmup=0), 10, [0]) == [0.5]


def test_a_run_shorter_than_the_warmup_never_falls():
    found = rates(optim(warmup=100), 10, range(10))
    assert found == sorted(found) and np.isfinite(found).all()


def update(config, gradient, parameter):
    tx = make_optimizer(config, 10)
    params = {"w": jnp.array(parameter)}
    updates, _ = tx.update({"w": jnp.array(gradient)}, tx.init(params), params)
    return np.asarray(updates["w"])


def test_first_step_is_adams():
    found = update(optim(warmup=0, decay="constant"), [3.0, -0.01], [1.0, 1.0])
    np.testing.assert_allclose(found, [-0.5, 0.5], rtol=1e-4)  # lr times the sign, whatever the scale


def test_weight_decay_is_decoupled():
    plain, decayed = (
        update(optim(warmup=0, decay="constant", weight_decay=w), [3.0, -1.0], [2.0, -4.0]) for w in (0.0, 0.1)
    )
    np.testing.assert_allclose(decayed - plain, [-0.5 * 0.1 * 2.0, 0.5 * 0.1 * 4.0], rtol=1e-4)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 0.2), (50.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, scale):
    tx = make_optimizer(optim(clip_norm=clip), 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    _, state = tx.update({"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    first_moment = next(s.mu for s in jax_leaves_with_moments(state))
    np.testing.assert_allclose(first_moment["a"], [0.3 * scale, 0], rtol=1e-5)  # (1 - b1) times the clipped gradient
    np.testing.assert_allclose(first_moment["b"], [0.4 * scale], rtol=1e-5)


def jax_leaves_with_moments(state):
    """The Adam states inside a chain's state."""
    if hasattr(state, "mu"):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from jax_leaves_with_moments(part)
