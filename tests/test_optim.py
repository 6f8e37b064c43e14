"""The learning-rate schedule and the optimiser, by hand values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_cases import normal

from configs import base
from t2diff_jax.config import OptimConfig
from t2diff_jax.config_values import from_mapping
from t2diff_jax.optim import global_norm, learning_rate, make_optimizer, scale_by_row_adagrad


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


def muon_updates(gradients, params=None, **changes):
    """By Adam and with Muon, of the same first step at the full learning rate."""
    params = params or jax.tree.map(jnp.zeros_like, gradients)
    found = []
    for kernels in ("adam", "muon"):
        tx = make_optimizer(optim(warmup=0, decay="constant", kernels=kernels, **changes), 10)
        found.append(tx.update(gradients, tx.init(params), params)[0])
    return found


def test_muon_steps_have_even_singular_values_and_the_size_of_adams():
    """From a gradient of 1 : 50: about 1 (Newton-Schulz ends between .7 and 1.2) times .2 sqrt(larger side)."""
    gradient = normal(0, 8, 32) * np.geomspace(0.02, 1, 8)[:, None]
    _, update = muon_updates({"layer": {"kernel": jnp.asarray(gradient, jnp.float32)}})
    values = np.linalg.svd(update["layer"]["kernel"], compute_uv=False)
    np.testing.assert_allclose(values / (0.5 * 0.2 * np.sqrt(32)), 1, atol=0.35)
    assert np.sum(np.asarray(update["layer"]["kernel"]) * gradient) < 0


def test_muon_leaves_all_but_kernels_to_adam():
    """With Nesterov's momentum."""
    gradients = {
        "items": {"item_table": jnp.asarray(normal(1, 6, 4))},
        "layer": {"kernel": jnp.asarray(normal(2, 4, 4)), "bias": jnp.asarray(normal(3, 4))},
    }
    _, both = muon_updates(gradients)
    tx = optax.adamw(0.5, weight_decay=0.0, nesterov=True)
    adam = tx.update(gradients, tx.init(gradients), gradients)[0]
    np.testing.assert_allclose(adam["items"]["item_table"], both["items"]["item_table"], rtol=1e-6)
    np.testing.assert_allclose(adam["layer"]["bias"], both["layer"]["bias"], rtol=1e-6)
    assert np.abs(adam["layer"]["kernel"] - both["layer"]["kernel"]).max() > 0.1


def test_row_adagrad_by_hand():
    """Mean squares of the rows 12.5, 0, 2: divided by their roots; after the same gradient again by sqrt(2) of that."""
    tx, g = scale_by_row_adagrad(), jnp.array([[3.0, 4.0], [0.0, 0.0], [2.0, 0.0]])
    params = {"item_table": jnp.ones((3, 2))}
    first, state = tx.update({"item_table": g}, tx.init(params))
    np.testing.assert_allclose(state.squares["item_table"], [12.5, 0, 2])
    roots = np.sqrt([[12.5], [1], [2]])
    np.testing.assert_allclose(first["item_table"], g / roots, rtol=1e-6)
    second, _ = tx.update({"item_table": g}, state)
    np.testing.assert_allclose(second["item_table"], g / roots / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("kernels", ["adam", "muon"])
def test_row_adagrad_is_for_tables_alone(kernels):
    """At its own rate, along the same schedule, with weight decay; all else learns as without it."""
    gradients = {
        "items": {"item_table": jnp.asarray(normal(1, 6, 4)), "category_table": jnp.asarray(normal(4, 3, 4))},
        "layer": {"kernel": jnp.asarray(normal(2, 4, 4)), "bias": jnp.asarray(normal(3, 4))},
    }
    params = jax.tree.map(lambda g: g + 1, gradients)
    found = []
    for tables in ("adam", "adagrad"):
        how = dict(warmup=2, decay="constant", kernels=kernels, weight_decay=0.1, tables=tables, table_rate=0.2)
        tx = make_optimizer(optim(**how), 10)
        state = tx.init(params)
        _, state = tx.update(gradients, state, params)  # at rate 0
        found.append(tx.update(gradients, state, params)[0])
    plain, rows = found
    g, p = (np.asarray(tree["items"]["item_table"]) for tree in (gradients, params))
    expected = -0.1 * (g / np.sqrt(2 * np.square(g).mean(axis=1, keepdims=True)) + 0.1 * p)
    np.testing.assert_allclose(rows["items"]["item_table"], expected, rtol=1e-5)
    for section, name in (("items", "category_table"), ("layer", "kernel"), ("layer", "bias")):
        np.testing.assert_array_equal(rows[section][name], plain[section][name])


def test_weight_decay_is_the_same_for_both():
    """lr * decay * weight, for kernels and tables."""
    gradients = {
        "layer": {"kernel": jnp.asarray(normal(2, 4, 4))},
        "items": {"item_table": jnp.asarray(normal(1, 6, 4))},
    }
    params = jax.tree.map(lambda g: g + 1, gradients)
    (_, plain), (_, decayed) = (muon_updates(gradients, params, weight_decay=w) for w in (0.0, 0.1))
    difference = jax.tree.map(lambda a, b: b - a, plain, decayed)
    for got, p in zip(jax.tree.leaves(difference), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(got, -0.5 * 0.1 * p, atol=1e-5)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 0.2), (50.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, scale):
    tx = make_optimizer(optim(clip_norm=clip), 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    _, state = tx.update({"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    (adam,) = (s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "nu")) if hasattr(s, "nu"))
    np.testing.assert_allclose(adam.mu["a"], [0.3 * scale, 0], rtol=1e-5)  # (1 - b1) times the clipped gradient
    np.testing.assert_allclose(adam.mu["b"], [0.4 * scale], rtol=1e-5)


@pytest.mark.parametrize("kernels", ["adam", "muon"])
def test_clipping_is_optax(kernels):
    """Of tables, kernels and vectors together; and a gradient of zeros stays zeros."""
    gradients = {
        "items": {"item_table": jnp.asarray(normal(1, 6, 4))},
        "layer": {"kernel": jnp.asarray(normal(2, 4, 3)), "bias": jnp.asarray(normal(3, 3))},
    }
    np.testing.assert_allclose(global_norm(gradients), optax.tree.norm(gradients), rtol=1e-6)
    own, plain = (make_optimizer(optim(clip_norm=c, kernels=kernels, warmup=0), 10) for c in (0.7, 0.0))
    theirs = optax.chain(optax.clip_by_global_norm(0.7), plain)
    nothing = jax.tree.map(jnp.zeros_like, gradients)
    found = []
    for tx in (own, theirs):
        first, state = tx.update(gradients, tx.init(gradients), gradients)
        found.append(
            (first, tx.update(nothing, state, gradients)[0], tx.update(nothing, tx.init(gradients), gradients)[0])
        )
    for got, expected in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)
