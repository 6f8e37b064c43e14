"""Negatives: what is drawn, how often each is to be expected, and that the sampled sum estimates the whole one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import normal, small_config

from t2diff_jax.losses import sampled_softmax
from t2diff_jax.negatives import (
    Frequencies,
    counted,
    draw_from_batch,
    draw_uniform,
    initial_frequencies,
    log_expected_counts,
    with_negatives,
)

KEY = jax.random.key(0)
BATCH = {
    "history": jnp.array([[0, 3, 3], [0, 0, 0], [7, 8, 9]]),
    "target": jnp.array([5, 6, 4]),
    "weight": jnp.array([1.0, 1.0, 0.0]),
}


def loss(**changes):
    return dataclasses.replace(small_config().loss, **changes)


def test_uniform_draws_are_items():
    ids = np.asarray(draw_uniform(KEY, 5000, 7))
    np.testing.assert_allclose(np.bincount(ids, minlength=8)[1:] / 5000, 1 / 7, atol=0.02)
    assert ids.min() == 1 and ids.max() == 7


def test_draws_from_a_batch_are_its_behaviours_and_targets():
    """Each as often as it stands there: 3 twice, 5 and 6 once; no padding, nothing of a row that does not count."""
    ids = np.asarray(jax.jit(draw_from_batch, static_argnums=1)(KEY, 4000, BATCH))
    np.testing.assert_allclose(np.bincount(ids, minlength=10) / 4000, [0, 0, 0, 0.5, 0, 0.25, 0.25, 0, 0, 0], atol=0.03)
    nothing = {**BATCH, "weight": jnp.zeros(3)}
    assert not np.any(draw_from_batch(KEY, 6, nothing))


def test_counts_by_hand():
    """Three draws a step, decay 1/2. Step 0: item 1 twice, item 2 once. Step 2: item 1 once, and nothing."""
    before = initial_frequencies(5, 4)
    np.testing.assert_array_equal(before.draw_gap, [4, 4, 4, 4, 4])
    first = counted(before, jnp.array([1, 2, 1]), jnp.int32(0), 0.5)
    # Item 1: a gap of 3 / 2, seen twice (weight 3/4); item 2: a gap of 3, seen once (1/2).
    np.testing.assert_allclose(first.draw_gap, [4, 4 - 2.5 * 3 / 4, 3.5, 4, 4])
    assert first.draw_step.tolist() == [0, 1, 1, 0, 0]
    second = counted(first, jnp.array([0, 1, 0]), jnp.int32(2), 0.5)
    np.testing.assert_allclose(second.draw_gap, [4, (4 - 2.5 * 3 / 4 + 6) / 2, 3.5, 4, 4])
    assert second.draw_step.tolist() == [0, 3, 1, 0, 0]


@pytest.mark.parametrize("step", [2**29, 2**31 - 2])
def test_counts_go_on_where_the_draws_are_more_than_an_integer_holds(step):
    """Four a step. Item 1 was counted in the step before, item 2 never."""
    at = Frequencies(jnp.full(3, 5.0), jnp.array([0, step, 0], jnp.int32))
    found = counted(at, jnp.array([1, 1, 2, 2]), jnp.int32(step), 1.0)
    np.testing.assert_allclose(found.draw_gap, [5, 2, 2 * (step + 1.0)])


def test_the_estimate_finds_the_probabilities():
    """Of a skewed distribution, from 1,000 steps of 40 draws: those of frequent items, and on average those of rare."""
    p = 1 / np.arange(1, 201.0)
    p /= p.sum()
    draws = 1 + np.random.default_rng(0).choice(200, size=(1000, 40), p=p)

    def step(state, row):
        number, drawn = row
        return counted(state, drawn, number, 0.05), None

    found, _ = jax.jit(lambda s, rows: jax.lax.scan(step, s, rows))(
        initial_frequencies(201, 200), (jnp.arange(1000), jnp.asarray(draws, jnp.int32))
    )
    ratio = 1 / np.asarray(found.draw_gap)[1:] / p
    np.testing.assert_allclose(ratio[:10], 1, atol=0.4)
    assert abs(np.log(ratio[:100]).mean()) < 0.1 and abs(np.log(ratio[100:]).mean()) < 0.2


def test_expected_counts_by_hand():
    """10 uniform draws of 40 items and 6 from batches, of which item 1 has a third and item 2 a sixtieth."""
    found = Frequencies(jnp.array([1.0, 3.0, 60.0]), jnp.zeros(3, jnp.int32))
    both = log_expected_counts(jnp.array([1, 2]), found, loss(negatives=10, batch_negatives=6), 40)
    np.testing.assert_allclose(np.exp(both), [0.25 + 2, 0.25 + 0.1], rtol=1e-6)
    uniform = log_expected_counts(jnp.array([1, 2]), None, loss(negatives=10), 40)
    np.testing.assert_allclose(np.exp(uniform), [0.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize(("negatives", "from_batch"), [(5, 0), (0, 4), (5, 4)])
def test_a_step_draws_what_it_is_told(negatives, from_batch):
    """Uniform ones first; the same for the same step, others for another; the estimate is the one after the draws."""
    how = loss(negatives=negatives, batch_negatives=from_batch)
    start = initial_frequencies(13, 12) if from_batch else None
    batch, found = with_negatives(BATCH, start, how, 12, seed=0, step=jnp.int32(3))
    again, _ = with_negatives(BATCH, start, how, 12, seed=0, step=jnp.int32(3))
    other, _ = with_negatives(BATCH, start, how, 12, seed=0, step=jnp.int32(4))
    assert batch["negatives"].shape == batch["log_counts"].shape == (negatives + from_batch,)
    np.testing.assert_array_equal(batch["negatives"], again["negatives"])
    assert np.any(batch["negatives"] != other["negatives"])
    assert set(batch["negatives"][negatives:].tolist()) <= {3, 5, 6}
    np.testing.assert_array_equal(batch["log_counts"], log_expected_counts(batch["negatives"], found, how, 12))
    if from_batch:
        assert np.all(found.draw_step[batch["negatives"][negatives:]] == 4)
    else:
        assert found is None


@pytest.mark.parametrize(("uniform", "from_batch"), [(40, 0), (0, 40), (20, 20)])
def test_the_sampled_sum_estimates_that_over_all_items(uniform, from_batch):
    """Whatever they are drawn from, where the probabilities are known: the mean over draws of e^loss."""
    n, draws, generator = 6, 4000, np.random.default_rng(1)
    q = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    ids = np.concatenate(
        [generator.integers(1, n + 1, (draws, uniform)), 1 + generator.choice(n, (draws, from_batch), p=q)], axis=1
    )
    frequencies = Frequencies(jnp.asarray(np.append(1, 1 / q), jnp.float32), jnp.zeros(n + 1, jnp.int32))
    table, user, target = jnp.asarray(normal(1, n + 1, 3)), jnp.asarray(normal(2, 3)), 2

    def one(ids):
        counts = log_expected_counts(ids, frequencies, loss(negatives=uniform, batch_negatives=from_batch), n)
        args = user[None, None, None], table[target][None, None], table[ids], jnp.array([[target]]), ids, counts
        return sampled_softmax(*args, merge="softmax_mean")[0, 0]

    found = np.exp(jax.jit(jax.vmap(one))(jnp.asarray(ids, jnp.int32))).mean()
    scores = np.asarray(table)[1:] @ np.asarray(user)
    np.testing.assert_allclose(found, np.exp(scores).sum() / np.exp(scores[target - 1]), rtol=0.02)
