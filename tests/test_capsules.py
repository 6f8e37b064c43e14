"""Dynamic routing: by hand, against numpy, masks and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from model_cases import normal

from t2diff_jax.nn import capsules
from t2diff_jax.nn.capsules import squash

B, P, L, K, D = 2, 3, 4, 3, 5
VOTES, START = normal(0, B, L, K, D), normal(1, 1, P, L, K)
SEES = np.random.default_rng(2).random((B, P, L)) < 0.7
SEES[0, 0] = False
ACTIVE = np.array([[[True, True, True], [True, True, False], [True, False, False]]] * B)


def route(votes, *others):
    """On votes as they are: routing works on those over sqrt(D), and gives interests times it."""
    return capsules.route(D**0.5 * votes, *others) / D**0.5


def test_squash_by_hand():
    np.testing.assert_allclose(squash(jnp.array([3.0, 4.0])), np.array([0.6, 0.8]) * 25 / 26, rtol=1e-6)
    assert not np.any(squash(jnp.zeros(2))) and np.isfinite(jax.grad(lambda z: squash(z).sum())(jnp.zeros(2))).all()


def slow(iterations):
    out = np.zeros((B, P, K, D))
    for b, p in np.ndindex(B, P):
        logits, kinds, seen = START[0, p].astype(np.float64), np.flatnonzero(ACTIVE[b, p]), np.flatnonzero(SEES[b, p])
        for _ in range(iterations):
            u = np.zeros((K, D))
            for i in seen:
                w = np.exp(logits[i, kinds]) / np.exp(logits[i, kinds]).sum()
                u[kinds] += w[:, None] * VOTES[b, i, kinds]
            square = (u**2).sum(axis=1, keepdims=True)
            u = np.where(square > 0, u * square / (1 + square) / np.sqrt(np.where(square > 0, square, 1)), 0)
            logits = logits + np.einsum("kd,lkd->lk", u, VOTES[b])
        out[b, p] = u
    return out


def test_routing_against_numpy():
    """A behaviour spreads over interests, not an interest over behaviours; unseen and inactive ones take no part."""
    for iterations in (1, 3):
        got = route(*map(jnp.asarray, (VOTES, START, SEES, ACTIVE)), iterations)
        np.testing.assert_allclose(got, slow(iterations), rtol=1e-4, atol=1e-6)
    assert not np.any(got[0, 0]) and not np.any(got[~ACTIVE])


def test_votes_alike_need_a_start_that_is_not():
    votes = jnp.broadcast_to(jnp.asarray(VOTES[:, :, :1]), VOTES.shape)
    sees, active = jnp.ones((B, P, L), bool), jnp.ones((B, P, K), bool)
    same = np.asarray(route(votes, jnp.zeros((1, P, L, K)), sees, active, 3))
    np.testing.assert_allclose(same[:, :, 0], same[:, :, 1], rtol=1e-5)
    apart = np.asarray(route(votes, jnp.asarray(START), sees, active, 3))
    assert np.abs(apart[:, :, 0] - apart[:, :, 1]).max() > 0.1


def test_only_the_last_iteration_has_a_gradient():
    """As if the shares of the last iteration were given."""

    def last(votes, iterations):
        return (route(votes, *map(jnp.asarray, (START, SEES, ACTIVE)), iterations) ** 2).sum()

    gradient = jax.grad(last)(jnp.asarray(VOTES), 3)
    shares = jnp.zeros((B, P, L, K))
    logits = jnp.broadcast_to(jnp.asarray(START), shares.shape)
    for _ in range(3):
        shares = jnp.where(ACTIVE[:, :, None], jnp.exp(logits), 0)
        shares = shares / shares.sum(axis=-1, keepdims=True) * SEES[..., None]
        u = squash(jnp.einsum("bplk,blkd->bpkd", shares, VOTES))
        logits = logits + jnp.einsum("bpkd,blkd->bplk", u, VOTES)
    given = jax.grad(lambda v: (squash(jnp.einsum("bplk,blkd->bpkd", shares, v)) ** 2).sum())(jnp.asarray(VOTES))
    np.testing.assert_allclose(gradient, given, rtol=1e-3, atol=1e-5)
