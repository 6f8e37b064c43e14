"""The network that denoises one position: naive numpy, what it sees, both ends of the chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import drawn, float64, normal

from t2diff_jax.nn.denoiser import Denoiser, WindowDenoiser

B, P, D, C, T = 3, 4, 5, 6, 50
NET = Denoiser(features=D, hidden=8, blocks=2, step_dim=4, dtype=jnp.dtype("float32"))
Z, CONDITION = normal(1, B, P, D), normal(2, B, P, C)
R = np.arange(1, B * P + 1, dtype=np.int32).reshape(B, P)
PARAMS = drawn(NET.init, Z, R, CONDITION)


@jax.jit
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
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(PARAMS, scale * Z, scale * CONDITION)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_bfloat16_gives_float32():
    low = NET.clone(dtype=jnp.dtype("bfloat16")).apply({"params": PARAMS}, *map(jnp.asarray, (Z, R, CONDITION)))
    assert low.dtype == jnp.float32
    full = np.asarray(run(Z, R, CONDITION))
    assert np.abs(low - full).max() < 0.05 * np.abs(full).max()


# DiffuRec's, over the window

MASK = np.array([[True] * 4, [False, True, True, True], [False] * 4])
X = normal(3, B, P, D + 1)
WINDOWED = dict(
    features=D + 1,
    layers=1,
    heads=1,
    hidden=8,
    dropout=0.0,
    rotary=True,
    step_dim=4,
    mixing=0.5,
    mapped=True,
    dtype=jnp.dtype("float32"),
)
WINDOW_ARGS = (normal(4, B, P, D + 1), R, X, MASK, normal(5, B, P, D + 1))
WINDOW_PARAMS = drawn(WindowDenoiser(**WINDOWED).init, *WINDOW_ARGS, deterministic=True)


def over_window(*args, params=WINDOW_PARAMS, **changes):
    net = WindowDenoiser(**{**WINDOWED, **changes})
    return np.asarray(jax.jit(functools.partial(net.apply, deterministic=True))({"params": params}, *args))


def test_a_window_is_read_from_the_left():
    """Noised item, share and behaviour of a position reach it and what follows; padding reaches nothing."""
    before = over_window(*WINDOW_ARGS)
    for place in (0, 2, 4):
        for column in range(P):
            args = list(WINDOW_ARGS)
            args[place] = args[place].copy()
            args[place][:, column, 0] += 1  # of one feature: a norm would take out what is added to all
            changed = np.any(over_window(*args) != before, axis=-1)
            np.testing.assert_array_equal(changed, MASK & MASK[:, [column]] & (np.arange(P) >= column))


def test_without_mixing_the_noised_item_is_unknown():
    z, r, x, mask, share = WINDOW_ARGS
    before = over_window(*WINDOW_ARGS, mixing=0.0)
    np.testing.assert_array_equal(before, over_window(z + 1, r + 5, x, mask, share + 1, mixing=0.0))


def test_the_share_is_normal_around_its_mean():
    """x_j + mixing (1 + share) (z + step): a share of -1 takes the noised item away."""
    z, r, x, mask, share = WINDOW_ARGS
    alone = over_window(z, r, x, mask, share, mixing=0.0)
    np.testing.assert_allclose(over_window(z, r, x, mask, np.full_like(share, -1)), alone, atol=1e-6)


def test_without_a_map_the_estimate_is_the_last_norm():
    """As published: its length is bounded, whatever the kernels inside."""
    inner = {name: value for name, value in WINDOW_PARAMS.items() if name != "out"}
    found = over_window(*WINDOW_ARGS, params=inner, mapped=False)
    np.testing.assert_allclose(
        reference.dense(float64(WINDOW_PARAMS["out"]), found), over_window(*WINDOW_ARGS), atol=1e-5
    )
    plain = {**inner, "encoder": {**inner["encoder"], "norm": {"scale": np.ones(D + 1), "bias": np.zeros(D + 1)}}}
    found = over_window(*WINDOW_ARGS, params=plain, mapped=False)
    np.testing.assert_allclose(np.square(found).mean(axis=-1), 1, atol=1e-2)
