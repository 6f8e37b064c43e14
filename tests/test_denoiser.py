"""The network that denoises one position: naive numpy, what it sees, both ends of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import drawn, float64, normal, quick_jit

from t2diff_jax.nn.denoiser import Denoiser

B, P, D, C, T = 3, 4, 5, 6, 50
NET = Denoiser(features=D, hidden=8, blocks=2, step_dim=4, dtype=jnp.dtype("float32"))
Z, CONDITION = normal(1, B, P, D), normal(2, B, P, C)
R = np.arange(1, B * P + 1, dtype=np.int32).reshape(B, P)
PARAMS = drawn(NET.init, Z, R, CONDITION)


@quick_jit
def run(z, r, condition):
    return NET.apply({"params": PARAMS}, z, r, condition)


@pytest.mark.parametrize("r", [R, np.array([[T]], np.int32), R[:, :1]], ids=["of each", "one", "of a window"])
def test_against_numpy(r):
    got = np.asarray(run(Z, r, CONDITION))
    every = np.broadcast_to(r, (B, P))
    for b, p in np.ndindex(B, P):
        expected = reference.denoiser(float64(PARAMS), float64(Z[b, p]), every[b, p], float64(CONDITION[b, p]))
        np.testing.assert_allclose(got[b, p], expected, atol=1e-5)


def test_a_position_sees_itself_alone_and_all_of_it():
    before = np.asarray(run(Z, R, CONDITION))
    for change in (lambda a, at: (Z + at, R, CONDITION), lambda a, at: (Z, R, CONDITION + at)):
        at = np.zeros((B, P, 1), np.float32)
        at[1, 2] = 1
        changed = np.any(np.asarray(run(*change(Z, at))) != before, axis=-1)
        np.testing.assert_array_equal(changed, at[..., 0] > 0)
    assert np.all(np.any(np.asarray(run(Z, R + 7, CONDITION)) != before, axis=-1))


@pytest.mark.parametrize("r", [1, T])
def test_gradients_are_finite(r):
    def total(params, z, condition):
        return jnp.square(NET.apply({"params": params}, z, jnp.array([[r]]), condition)).sum()

    for scale in (0.0, 1.0, 1e4):
        gradient = quick_jit(jax.grad(total, argnums=(0, 1, 2)))(PARAMS, scale * Z, scale * CONDITION)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_bfloat16_gives_float32():
    low = NET.clone(dtype=jnp.dtype("bfloat16")).apply({"params": PARAMS}, *map(jnp.asarray, (Z, R, CONDITION)))
    assert low.dtype == jnp.float32
    full = np.asarray(run(Z, R, CONDITION))
    assert np.abs(low - full).max() < 0.05 * np.abs(full).max()
