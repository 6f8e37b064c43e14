"""Losses: by hand, against numpy, in their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import normal

from t2diff_jax.losses import (
    diffusion_loss,
    divergence_from_normal,
    first_occurrence,
    first_places,
    full_softmax,
    mean_full_softmax,
    mixture,
    sampled_softmax,
    weighted_mean,
)
from t2diff_jax.seen import Seen

N, ROWS = 6, 9  # items 1..6, rows 7 and 8 only fill the table
VALID = jnp.asarray((np.arange(ROWS) > 0) & (np.arange(ROWS) <= N))
TABLE = jnp.asarray(normal(0, ROWS, 3))
USERS = jnp.asarray(normal(1, 4, 3))
TARGETS = jnp.array([1, 6, 3, 3])


def uncompiled(users=USERS, table=TABLE, targets=TARGETS, smoothing=0.0):
    args = users[:, None], table, targets, VALID[None]
    return full_softmax(*args, label_smoothing=smoothing, merge="softmax_mean")


@functools.partial(jax.jit, static_argnames="smoothing")
def compiled(users, table, targets, smoothing):
    return uncompiled(users, table, targets, smoothing)


def full(users=USERS, table=TABLE, targets=TARGETS, smoothing=0.0):
    return compiled(users, table, targets, smoothing)


def test_full_softmax_by_hand():
    """Scores 0, log 2, log 3 over three items: the probability of the last is 3 / 6."""
    table = jnp.log(jnp.array([[99.0], [1.0], [2.0], [3.0]]))
    allowed = jnp.array([[False, True, True, True]])
    args = jnp.array([[[1.0]]]), table, jnp.array([3]), allowed
    loss = full_softmax(*args, label_smoothing=0.0, merge="logsumexp")
    np.testing.assert_allclose(loss, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_full_softmax_against_numpy(smoothing):
    scores = np.asarray(USERS) @ np.asarray(TABLE)[1 : N + 1].T
    expected = [reference.cross_entropy(s, t - 1, smoothing) for s, t in zip(scores, TARGETS.tolist(), strict=True)]
    got = full(smoothing=smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert got.dtype == jnp.float32


def test_rows_that_are_no_items_do_not_count():
    table = TABLE.at[jnp.array([0, 7, 8])].set(1e4)
    np.testing.assert_array_equal(full(table=table), full())
    gradient = jax.jit(jax.grad(lambda t: uncompiled(table=t, smoothing=0.1).sum()))(table)
    assert not np.any(np.asarray(gradient)[[0, 7, 8]]) and np.isfinite(gradient).all()


def test_full_softmax_is_stable_and_says_so_for_a_padding_target():
    loss, gradient = jax.jit(jax.value_and_grad(lambda u: uncompiled(users=u).sum()))(1e4 * USERS)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert np.isposinf(full(targets=jnp.array([0, 0, 0, 0]))).all()


def test_full_softmax_accumulates_in_float32():
    low = full(users=USERS.astype(jnp.bfloat16), table=TABLE.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, full(), atol=0.1)


WEIGHTS = jnp.array([0.5, 0.0, 2.0, 1.0])


@functools.partial(jax.jit, static_argnames=("smoothing", "chunk"))
def mean_and_gradient(users, table, targets, weights, smoothing, chunk):
    def mean(users, table):
        args = users[:, None], table, targets, VALID, weights
        return mean_full_softmax(*args, label_smoothing=smoothing, merge="softmax_mean", chunk=chunk)

    return jax.value_and_grad(mean, argnums=(0, 1))(users, table)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 4, 64])
def test_the_mean_is_that_of_the_single_losses_however_it_is_cut(chunk, smoothing):
    mean, gradient = mean_and_gradient(USERS, TABLE, TARGETS, WEIGHTS, smoothing, chunk)
    np.testing.assert_allclose(mean, np.average(full(smoothing=smoothing), weights=WEIGHTS), rtol=1e-6)
    expected = jax.grad(lambda u, t: WEIGHTS @ uncompiled(u, t, smoothing=smoothing) / WEIGHTS.sum(), argnums=(0, 1))
    for g, e in zip(gradient, expected(USERS, TABLE), strict=True):
        np.testing.assert_allclose(g, e, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 2])
def test_targets_of_weight_0_have_no_influence_on_the_mean(chunk):
    expected = mean_and_gradient(USERS, TABLE, TARGETS, WEIGHTS, 0.0, chunk)
    garbage = mean_and_gradient(USERS.at[1].set(jnp.inf), TABLE, TARGETS.at[1].set(0), WEIGHTS, 0.0, chunk)
    assert garbage[0] == expected[0]
    nothing, gradient = mean_and_gradient(USERS, TABLE, TARGETS, 0 * WEIGHTS, 0.0, chunk)
    assert nothing == 0 and not any(np.any(g) for g in gradient)


def uniform(ids, n_items=N):
    """log E[how often] of uniform draws."""
    return jnp.full(ids.shape, jnp.log(ids.shape[0] / n_items))


def sampled_uncompiled(negative_ids, users=USERS, table=TABLE, targets=TARGETS, n_items=N, own_ids=None):
    """One target a row."""
    own = None if own_ids is None else table[own_ids]
    args = users[:, None, None], table[targets][:, None], table[negative_ids], targets[:, None], negative_ids
    args += (uniform(negative_ids, n_items),)
    return sampled_softmax(*args, own, own_ids, merge="softmax_mean")[:, 0]


sampled_compiled = jax.jit(sampled_uncompiled, static_argnums=4)


def sampled(negative_ids, users=USERS, table=TABLE, targets=TARGETS, n_items=N, own_ids=None):
    return sampled_compiled(negative_ids, users, table, targets, n_items, own_ids)


def test_sampled_softmax_by_hand():
    """Scores: positive log 3; negatives log 1 and log 2 of N = 8 items, so each stands for 8 / 2 of them."""
    table = jnp.log(jnp.array([[1.0], [1.0], [2.0], [3.0]]))
    loss = sampled(jnp.array([1, 2]), jnp.array([[1.0]]), table, jnp.array([3]), 8)
    np.testing.assert_allclose(loss, [np.log((3 + 4 * 1 + 4 * 2) / 3)], rtol=1e-6)


def test_all_items_as_negatives_give_the_full_softmax():
    """m = N: log(m / N) = 0, and the target's duplicate among the negatives is masked. The order plays no part."""
    np.testing.assert_allclose(sampled(jnp.arange(1, N + 1)), full(), rtol=1e-5)
    np.testing.assert_allclose(sampled(jnp.array([3, 1, 6, 2, 5, 4])), full(), rtol=1e-5)


def test_accidental_hits_are_masked():
    hits = sampled(jnp.array([3, 3, 3]), targets=jnp.array([3, 3, 3, 2]))
    np.testing.assert_array_equal(hits[:3], 0)
    assert hits[3] > 0
    # Another target's row keeps the same negative.
    np.testing.assert_allclose(hits[3], np.log1p(3 * 2 * np.exp(USERS[3] @ (TABLE[3] - TABLE[2]))), rtol=1e-5)


def test_sampled_softmax_approaches_the_full_one():
    """The sum over the sample estimates the sum over the other items without bias: mean over draws of e^loss."""
    ids = np.random.default_rng(2).integers(1, N + 1, (400, 60)).astype(np.int32)
    draws = np.asarray(jax.jit(jax.vmap(sampled_uncompiled))(ids))
    np.testing.assert_allclose(np.exp(draws).mean(0), np.exp(full()), rtol=0.03)
    np.testing.assert_allclose(draws.mean(0), full(), rtol=0.05)


def test_own_negatives_by_hand():
    """Scores log 1, 2, 3 (the target), 5 of N = 8; own: item 2 twice and item 4, which leave the shared ones."""
    table, users = jnp.log(jnp.array([[1.0], [1.0], [2.0], [3.0], [5.0]])), jnp.array([[1.0]])
    own = jnp.array([[0, 2, 4, 2]])
    loss = sampled(jnp.array([1, 2]), users, table, jnp.array([3]), 8, own)
    np.testing.assert_allclose(loss, [np.log((3 + 2 + 5 + 4 * 1) / 3)], rtol=1e-6)
    # The target itself among them is no negative.
    loss = sampled(jnp.array([1, 2]), users, table, jnp.array([4]), 8, own)
    np.testing.assert_allclose(loss, [np.log((5 + 2 + 4 * 1) / 5)], rtol=1e-6)


def test_own_negatives_are_those_of_their_row_at_every_position():
    """Two positions a row are two rows of one position."""
    rng = np.random.default_rng(5)
    own, ids = jnp.array([[0, 1, 2], [4, 4, 6]]), jnp.array([1, 3, 5])
    users, targets = jnp.asarray(rng.normal(size=(2, 2, USERS.shape[1])), jnp.float32), jnp.array([[3, 1], [2, 4]])
    args = users[:, :, None], TABLE[targets], TABLE[ids], targets, ids, uniform(ids), TABLE[own], own
    both = sampled_softmax(*args, merge="softmax_mean")
    for p in range(2):
        np.testing.assert_allclose(both[:, p], sampled(ids, users[:, p], targets=targets[:, p], own_ids=own), rtol=1e-6)


def test_own_negatives_keep_the_sum_unbiased():
    own = jnp.array([[0, 3, 1], [2, 2, 5], [6, 0, 4], [1, 2, 3]])
    ids = np.random.default_rng(2).integers(1, N + 1, (400, 60)).astype(np.int32)
    with_own = np.exp(jax.jit(jax.vmap(lambda i: sampled_uncompiled(i, own_ids=own)))(ids))
    np.testing.assert_allclose(with_own.mean(0), np.exp(full()), rtol=0.03)


HISTORY = jnp.array([[0, 4, 4, 2], [5, 1, 6, 5]])  # two windows of four places


def behind(window, place):
    """The items up to a place, but padding."""
    return set(HISTORY[window, : place + 1].tolist()) - {0}


def test_seen_by_hand():
    """Of the last two places: behind window 0 lies {4}, then {2, 4}; behind window 1 {1, 5, 6} both times."""
    seen = Seen.of(HISTORY, 2)
    allowed = seen.allowed(seen.first(ROWS), VALID, jnp.array([1, 2, 3, 5]))
    expected = [[1, 2, 3, 5, 6], [1, 2, 3, 5, 6], [2, 3, 4], [2, 3, 4, 5]]
    assert [np.flatnonzero(row).tolist() for row in np.asarray(allowed)] == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 1, 3, 64])
def test_full_softmax_without_the_seen_against_numpy(chunk, smoothing):
    """Eight positions, one of weight 0, one target that repeats: the mean of each position's own small softmax."""
    users, targets = jnp.asarray(normal(3, 8, 3)), jnp.array([1, 6, 2, 3, 2, 4, 5, 3])
    weights = jnp.array([1.0, 0.5, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0])
    terms, kept = [], []
    for q, (u, t) in enumerate(zip(np.asarray(users), targets.tolist(), strict=True)):
        items = [i for i in range(1, N + 1) if i == t or i not in behind(q // 4, q % 4)]
        kept.append(items)
        terms.append(reference.cross_entropy(np.asarray(TABLE)[items] @ u, items.index(t), smoothing))
    assert 5 in kept[6] and 5 in behind(1, 2)

    def mean(users, table):
        args = users[:, None], table, targets, VALID, weights, Seen.of(HISTORY, 4)
        return mean_full_softmax(*args, label_smoothing=smoothing, merge="logsumexp", chunk=chunk)

    value, (by_users, by_table) = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(users, TABLE)
    np.testing.assert_allclose(value, np.average(terms, weights=weights), rtol=1e-5)

    def slow(users, table):
        losses = [
            jax.nn.logsumexp(table[jnp.array(i)] @ u)
            - ((1 - smoothing) * table[t] @ u + smoothing * (table[jnp.array(i)] @ u).mean())
            for u, t, i in zip(users, targets.tolist(), kept, strict=True)
        ]
        return jnp.stack(losses) @ weights / weights.sum()

    for got, wanted in zip((by_users, by_table), jax.grad(slow, argnums=(0, 1))(users, TABLE), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_best_vector_scores_an_item_by_hand():
    """Odds of two vectors: 3, 1 of the target, 2, 4 of another item; the softmax of the greater ones is 3 of 7."""
    users, table = jnp.log(jnp.array([[[3.0, 2.0], [1.0, 4.0]]])), jnp.eye(2)
    loss = full_softmax(users, table, jnp.array([0]), jnp.ones((1, 2), bool), label_smoothing=0.0, merge="max")
    np.testing.assert_allclose(loss, [np.log(7 / 3)], rtol=1e-6)


def test_a_mixture_by_hand():
    """Shares 3 of 6 and 1 of 8. Mean of the softmaxes: 5/16. One softmax of the sums: 4 of 14."""
    positives, totals = jnp.log(jnp.array([[3.0, 1.0]])), jnp.log(jnp.array([[6.0, 8.0]]))
    np.testing.assert_allclose(mixture(positives, totals, "softmax_mean"), [np.log(16 / 5)], rtol=1e-6)
    np.testing.assert_allclose(mixture(positives, totals, "logsumexp"), [np.log(14 / 4)], rtol=1e-6)
    gradient = jax.grad(lambda x: mixture(x, totals, "softmax_mean")[0])(positives)
    np.testing.assert_allclose(gradient, [[-0.8, -0.2]], rtol=1e-6)
    gradient = jax.grad(lambda x: mixture(x, totals, "logsumexp")[0])(positives)
    np.testing.assert_allclose(gradient, [[-0.75, -0.25]], rtol=1e-6)


@pytest.mark.parametrize("merge", ["softmax_mean", "logsumexp"])
def test_the_limits_of_a_mixture(merge):
    """One vector is its own softmax, bit by bit; a target without a score is impossible and teaches nothing."""
    positives, totals = jnp.asarray(normal(0, 5, 1)), 3 + jnp.asarray(normal(1, 5, 1))
    np.testing.assert_array_equal(mixture(positives, totals, merge), (totals - positives)[:, 0])
    impossible = jnp.full((1, 2), -jnp.inf)
    for total in (impossible, jnp.ones((1, 2))):
        assert np.isposinf(mixture(impossible, total, merge))
        gradients = jax.grad(lambda *args: mixture(*args, merge).sum(), argnums=(0, 1))(impossible, total)
        assert not any(map(np.any, gradients))


@pytest.mark.parametrize("merge", ["softmax_mean", "logsumexp", "max"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_several_vectors_are_a_mixture_against_numpy(chunk, merge):
    """Three vectors at every position, without the seen; value and gradient."""
    users, targets = jnp.asarray(normal(4, 8, 3, 3)), jnp.array([1, 6, 2, 3, 2, 4, 5, 3])
    weights = jnp.array([1.0, 0.5, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0])
    kept = [[i for i in range(1, N + 1) if i == t or i not in behind(q // 4, q % 4)] for q, t in enumerate(targets)]

    def mean(users, table):
        args = users, table, targets, VALID, weights, Seen.of(HISTORY, 4)
        return mean_full_softmax(*args, label_smoothing=0.0, merge=merge, chunk=chunk)

    def slow(users, table):
        def chance(user, items, target):
            odds = jnp.exp(user @ table[jnp.array(items)].T)
            if merge == "max":
                odds = odds.max(axis=0, keepdims=True)
            if merge == "softmax_mean":
                odds = odds / odds.sum(axis=1, keepdims=True)
            return odds[:, items.index(target)].sum() / odds.sum()

        chances = [chance(*args) for args in zip(users, kept, targets.tolist(), strict=True)]
        return -jnp.log(jnp.stack(chances)) @ weights / weights.sum()

    value, gradients = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(users, TABLE)
    terms = []
    for user, i, t in zip(np.asarray(users), kept, targets.tolist(), strict=True):
        odds = np.exp(user @ np.asarray(TABLE)[i].T)
        if merge == "max":
            odds = odds.max(axis=0, keepdims=True)
        shares = odds[:, i.index(t)] / odds.sum(axis=1)
        weight = np.full(len(odds), 1 / len(odds)) if merge == "softmax_mean" else odds.sum(axis=1) / odds.sum()
        terms.append(-np.log(weight @ shares))
    np.testing.assert_allclose(value, np.average(terms, weights=weights), rtol=1e-5)
    for got, wanted in zip(gradients, jax.grad(slow, argnums=(0, 1))(users, TABLE), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("merge", ["softmax_mean", "logsumexp", "max"])
def test_all_items_as_negatives_without_the_seen_give_the_full_softmax_without_them(merge):
    """With two vectors a user."""
    users, targets = jnp.asarray(normal(3, 2, 3, 2, 3)), jnp.array([[6, 2, 3], [4, 5, 3]])
    ids, weights = jnp.arange(1, N + 1), jnp.ones(6)
    args = users, TABLE[targets], TABLE[ids], targets, ids, uniform(ids)
    seen = Seen.of(HISTORY, 3)
    flat = users.reshape(6, 2, 3), TABLE, targets.reshape(6), VALID, weights, seen
    expected = mean_full_softmax(*flat, label_smoothing=0.0, merge=merge, chunk=0)
    np.testing.assert_allclose(sampled_softmax(*args, seen=HISTORY, merge=merge).mean(), expected, rtol=1e-5)
    with_own = sampled_softmax(*args, TABLE[HISTORY], HISTORY, HISTORY, merge=merge)
    np.testing.assert_allclose(with_own.mean(), expected, rtol=1e-5)


def test_what_came_before_the_window_is_no_negative_either():
    """All items as negatives, the window's own among them: the full softmax without what came before, 3 and 2."""
    users, targets = jnp.asarray(normal(3, 2, 3, 2, 3)), jnp.array([[6, 2, 3], [4, 5, 3]])
    ids, shown = jnp.arange(1, N + 1), jnp.concatenate([jnp.array([[0, 3], [3, 2]]), HISTORY], axis=1)
    flat = users.reshape(6, 2, 3), TABLE, targets.reshape(6), VALID, jnp.ones(6), Seen.of(shown, 3)
    expected = mean_full_softmax(*flat, label_smoothing=0.0, merge="logsumexp", chunk=0)
    args = users, TABLE[targets], TABLE[ids], targets, ids, uniform(ids)
    for own in ((None, None), (TABLE[HISTORY], HISTORY)):
        found = sampled_softmax(*args, *own, shown, merge="logsumexp").mean()
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = sampled_softmax(*args, TABLE[HISTORY], HISTORY, HISTORY, merge="logsumexp").mean()
    assert abs(alone - expected) > 1e-2


def test_first_places():
    places = [first_places(row, jnp.array([4, 5, 6])).tolist() for row in HISTORY]
    assert places == [[1, 4, 4], [4, 0, 2]]


def test_first_places_against_a_loop():
    """Ids that repeat, below and above all that is wanted too."""
    rng = np.random.default_rng(0)
    for length in (1, 2, 9, 40):
        ids, wanted = rng.integers(2, 12, length), np.arange(15)
        expected = [ids.tolist().index(i) if i in ids else length for i in wanted]
        assert first_places(jnp.asarray(ids), jnp.asarray(wanted)).tolist() == expected


def test_first_occurrence():
    ids = jnp.array([[3, 3, 0, 0, 2, 3], [1, 2, 3, 4, 5, 6]])
    expected = [[True, False, True, False, True, False], [True] * 6]
    np.testing.assert_array_equal(first_occurrence(ids), expected)


def test_sampled_softmax_gradients_are_finite():
    """Also where every negative is the row's own target, and where the scores are huge."""
    ids = jnp.array([3, 3])
    gradient = jax.jit(
        jax.grad(lambda u, t: sampled_uncompiled(ids, users=u, table=t).sum(), argnums=(0, 1)),
    )
    for scale in (1.0, 1e4):
        assert all(np.isfinite(g).all() for g in gradient(scale * USERS, TABLE))


def test_divergence_from_the_normal_by_hand():
    """(m^2 + v - 1 - log v) / 2 a dimension: 0 where it is N(0, I), with a gradient of 0 there."""
    mean, log_variance = jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, np.log(4.0)]])
    expected = [0, (4 / 2 + (4 - 1 - np.log(4)) / 2) / 2]
    np.testing.assert_allclose(divergence_from_normal(mean, log_variance), expected, rtol=1e-6)
    slope = jax.grad(lambda m, v: divergence_from_normal(m, v).sum(), (0, 1))(mean[:1], log_variance[:1])
    assert not np.any(slope)


def test_diffusion_loss_by_hand():
    """Row 0: (1 + 9) / 2 = 5 and (0 + 4) / 2 = 2 at its two valid positions; row 1 has none."""
    drift = jnp.zeros((2, 3, 2))
    estimate = jnp.array([[[100.0, 100.0], [1.0, 3.0], [0.0, 2.0]]] * 2)
    mask = jnp.array([[False, True, True], [False, False, False]])
    loss, gradient = jax.jit(jax.value_and_grad(lambda e: diffusion_loss(drift, e, mask).sum()))(estimate)
    np.testing.assert_allclose(jax.jit(diffusion_loss)(drift, estimate, mask), [3.5, 0])
    np.testing.assert_allclose(gradient[0], [[0, 0], [0.5, 1.5], [0, 1]])
    assert not np.any(gradient[1]) and loss == 3.5


def test_diffusion_loss_of_a_mask_is_the_loss_of_the_slice():
    a, b = normal(0, 2, 2, 5, 3)
    mask = np.broadcast_to(np.arange(5) >= 2, (2, 5))
    loss = jax.jit(diffusion_loss)
    np.testing.assert_allclose(loss(a, b, mask), loss(a[:, 2:], b[:, 2:], mask[:, 2:]), rtol=1e-6)
    np.testing.assert_array_equal(loss(a, np.where(mask[..., None], b, np.inf), mask), loss(a, b, mask))


def test_weighted_mean():
    values, weights = jnp.array([1.0, 4.0, jnp.nan]), jnp.array([3.0, 1.0, 0.0])
    loss, gradient = jax.jit(jax.value_and_grad(weighted_mean))(values, weights)
    np.testing.assert_allclose(loss, 7 / 4)
    np.testing.assert_allclose(gradient, [3 / 4, 1 / 4, 0])
    assert jax.jit(weighted_mean)(jnp.array([jnp.inf, jnp.nan]), jnp.zeros(2)) == 0
