"""What keeps a user's vectors apart: by hand, against numpy, in their limits."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import normal

from t2diff_jax import repel

ALL = jnp.ones((1, 2), bool)


def test_by_hand():
    """At 60 degrees, lengths 1 and 2: cosine 1/2, distance of the directions 1."""
    v = jnp.array([[[1.0, 0.0], [1.0, np.sqrt(3)]]])
    np.testing.assert_allclose(repel.squared_cosine(v, ALL), [1 / 4], rtol=1e-6)
    np.testing.assert_allclose(repel.alike(v, ALL, 0.2), [0.3], rtol=1e-5)
    np.testing.assert_allclose(repel.near(v, ALL, 1.5), [1 / 4], rtol=1e-5)
    opposed = jnp.array([[[0.0, 1.0, 2.0], [4.0, 3.0, 2.0]]])
    np.testing.assert_allclose(repel.squared_correlation(opposed, ALL), [1], rtol=1e-5)
    np.testing.assert_allclose(repel.alike(v, ALL, 0.6), [0])
    np.testing.assert_allclose(repel.near(v, ALL, 0.9), [0])


WAYS = {
    "cosine": (repel.squared_cosine, lambda a, b: (a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** 2),
    "correlation": (repel.squared_correlation, lambda a, b: np.corrcoef(a, b)[0, 1] ** 2),
    "distance": (
        functools.partial(repel.near, margin=3.0),
        lambda a, b: max(0, 3 - np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b))) ** 2,
    ),
    "alike": (
        functools.partial(repel.alike, margin=0.1),
        lambda a, b: max(0, a @ b / np.linalg.norm(a) / np.linalg.norm(b) - 0.1),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_against_numpy_over_the_pairs_that_count(way):
    function, of_pair = WAYS[way]
    vectors, active = normal(0, 2, 5, 4, 6), np.random.default_rng(1).random((2, 5, 4)) < 0.6
    expected = np.zeros((2, 5))
    for place in np.ndindex(2, 5):
        pairs = list(itertools.combinations(vectors[place][active[place]].astype(np.float64), 2))
        expected[place] = np.mean([of_pair(*pair) for pair in pairs]) if pairs else 0
    np.testing.assert_allclose(function(jnp.asarray(vectors), jnp.asarray(active)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_finite_where_vectors_are_zero_or_alike(way):
    function, _ = WAYS[way]
    for vectors in (jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)).at[0, 0].set(1.0)):
        assert np.isfinite(jax.grad(lambda v: function(v, ALL).sum())(vectors)).all()
