"""The estimator: naive numpy, masks, window lengths, causality, both ends of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import drawn, float64, normal

from t2diff_jax.nn.unet import UNet, causal_reach, pool, step_embedding

B, L, D, T = 4, 8, 3, 50
NETS = [UNet(filters=(4, 6, 8), features=D, step_dim=4, causal=c, dtype=jnp.dtype("float32")) for c in (False, True)]
Z, X = normal(1, B, L, D), normal(2, B, L, D)
MASK = np.arange(L) >= np.array([[0], [3], [L - 1], [L]])  # full, padded, one behaviour, empty
R = np.array([1, T, 7, 7], np.int32)


both = pytest.mark.parametrize("causal", [False, True])


def run(causal, params, z, x, r, mask):
    z, x, r, mask = map(jnp.asarray, (z, x, r, mask))
    prepared = NETS[causal].apply({"params": params}, x, mask, method="prepare")
    return NETS[causal].apply({"params": params}, z, r, prepared, mask)


@pytest.fixture(scope="module")
def params():
    """The same for both: to be causal changes no shape."""
    prepare, call = (
        [drawn(net.init, X, MASK, method="prepare") for net in NETS],
        [drawn(net.init, Z, R, np.zeros((B, L, 4), np.float32), MASK) for net in NETS],
    )
    for a, b in (prepare, call):
        assert jax.tree.map(np.shape, a) == jax.tree.map(np.shape, b)
    return {**prepare[0], **call[0]}


apply = jax.jit(run, static_argnums=0)


def test_step_embedding_by_hand():
    e = step_embedding(jnp.array([0, 3]), 4)
    np.testing.assert_allclose(e[0], [0, 0, 1, 1])
    np.testing.assert_allclose(e[1], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], rtol=1e-5)
    every = np.asarray(step_embedding(jnp.arange(201), 16))
    distances = np.linalg.norm(every[:, None] - every[None], axis=-1) + np.eye(201)
    assert distances.min() > 0.01


@pytest.mark.parametrize("filters", [(4,), (4, 6), (4, 6, 8)])
def test_how_far_back_the_causal_form_reads(filters):
    """The last place reads the one `causal_reach` before it, and none before that."""
    net, length = UNet(filters, D, 4, True, jnp.dtype("float32")), causal_reach(filters) + 3
    z, mask, r = jnp.asarray(normal(3, 1, length, D)), jnp.ones((1, length), bool), jnp.array([7])
    variables = {
        "params": drawn(net.init, z, mask, method="prepare")
        | drawn(net.init, z, r, jnp.zeros((1, length, filters[0])), mask)
    }

    @jax.jit
    @jax.jacobian
    def last(z):
        prepared = net.apply(variables, z, mask, method="prepare")
        return net.apply(variables, z, r, prepared, mask)[0, -1]

    # Pooling passes on the greater of two places: of several draws some reach back as far as can be.
    reached = np.any(
        [np.abs(last(jnp.asarray(normal(seed, 1, length, D)))).sum(axis=(0, 1, 3)) > 0 for seed in range(20)], axis=0
    )
    assert reached.tolist() == [False] * 2 + [True] * (length - 2)


def test_pool_by_hand():
    x = jnp.array([[[1.0], [2.0], [-3.0], [9.0], [-5.0], [-4.0], [7.0], [7.0]]])
    mask = jnp.array([[True, True, True, False, True, True, False, False]])
    halves, pooled = pool(x, mask)
    np.testing.assert_array_equal(halves[0, :, 0], [2, -3, -4, 0])
    np.testing.assert_array_equal(pooled, [[True, True, True, False]])
    gradient = jax.grad(lambda x: pool(x, mask)[0].sum())(x)
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 1, 1, 0, 0, 1, 0, 0])


@both
@pytest.mark.parametrize("r", [1, 7, T])
def test_against_numpy(params, r, causal):
    """The reference convolves [z ; X] as one array; the product adds two convolutions, one of them done beforehand."""
    got = apply(causal, params, Z, X, np.full(B, r, np.int32), np.ones((B, L), bool))
    p = float64(params)
    for row in range(2):
        expected = reference.unet(p, float64(Z[row]), float64(X[row]), r, causal)
        np.testing.assert_allclose(got[row], expected, atol=1e-4)


@both
def test_without_a_step(causal):
    net = NETS[causal].clone(step_dim=0)
    parts = drawn(net.init, X, MASK, method="prepare"), drawn(net.init, Z, None, np.zeros((B, L, 4), np.float32), MASK)
    p = {**parts[0], **parts[1]}
    z, x, full = jnp.asarray(Z), jnp.asarray(X), jnp.ones((B, L), bool)
    prepared = net.apply({"params": p}, x, full, method="prepare")
    got = net.apply({"params": p}, z, None, prepared, full)
    np.testing.assert_allclose(got[0], reference.unet(float64(p), float64(Z[0]), float64(X[0]), 1, causal), atol=1e-4)


@both
def test_padding_changes_nothing(params, causal):
    out = apply(causal, params, Z, X, R, MASK)
    hidden = ~MASK[..., None]
    for scale in (1.0, 1e6, 1e30):
        garbage = apply(causal, params, Z + hidden * scale * normal(3, B, L, D), X - hidden * scale, R, MASK)
        np.testing.assert_array_equal(out, garbage)
    assert not np.any(np.asarray(out)[~MASK]) and np.all(np.asarray(out)[MASK] != 0)


@both
@pytest.mark.parametrize(("length", "keep"), [(5, 5), (6, 5), (9, 8), (12, 8)])
def test_the_windows_length_does_not_matter(params, length, keep, causal):
    """The last positions of shorter and longer windows with the same behaviours agree, also across pooling cells."""
    mask = np.broadcast_to(np.arange(L) >= L - keep, (B, L))
    expected = apply(causal, params, Z, X, R, mask)[:, L - keep :]
    pad = ((0, 0), (max(length - L, 0), 0))
    z, x = (np.pad(a, (*pad, (0, 0)), constant_values=8.0)[:, -length:] for a in (Z, X))
    got = apply(causal, params, z, x, R, np.pad(mask, pad)[:, -length:])
    np.testing.assert_allclose(got[:, -keep:], expected, atol=1e-5)


@both
def test_every_input_matters(params, causal):
    everything = np.ones((B, L), bool)
    out = np.asarray(apply(causal, params, Z, X, R, everything))
    first = np.where(np.arange(L)[None, :, None] == 0, 1.0, 0.0).astype(np.float32)
    for other in (
        apply(causal, params, Z + first, X, R, everything),
        apply(causal, params, Z, X + first, R, everything),
        apply(causal, params, Z, X, R + 1, everything),
    ):
        # The first position is felt at the last one: the U-Net sees the whole window.
        assert np.all(np.any(out[:, -1] != np.asarray(other)[:, -1], axis=-1))


@pytest.mark.parametrize("length", [5, 8, 11])
def test_no_position_sees_a_later_one(params, length):
    """Also in windows that are no whole number of pooling cells: these hold four positions."""
    z, x = normal(4, B, length, D), normal(5, B, length, D)
    mask = np.arange(length) >= np.array([[0], [2], [0], [1]])
    out = np.asarray(apply(True, params, z, x, R, mask))
    for j in range(length):
        at_j = np.arange(length)[None, :, None] == j
        changes = [
            (z + at_j * normal(6, B, length, D), x, mask),
            (z, x + at_j * normal(7, B, length, D), mask),
            (z, x, mask & ~at_j[..., 0]),
        ]
        seen = mask[:, j]
        for changed in changes:
            other = np.asarray(apply(True, params, changed[0], changed[1], R, changed[2]))
            np.testing.assert_array_equal(out[:, :j], other[:, :j])
            # It does see what came before: its own input, and the next position's.
            for later in range(j, min(j + 2, length)):
                assert np.all(np.any(out[seen, later] != other[seen, later], axis=-1))
            np.testing.assert_array_equal(out[~seen], other[~seen])


def test_the_published_one_sees_later_positions(params):
    everything = np.ones((B, L), bool)
    last = np.where(np.arange(L)[None, :, None] == L - 1, 1.0, 0.0).astype(np.float32)
    out = np.asarray(apply(False, params, Z, X, R, everything))
    for other in (apply(False, params, Z + last, X, R, everything), apply(False, params, Z, X + last, R, everything)):
        assert np.all(np.any(out[:, 0] != np.asarray(other)[:, 0], axis=-1))


@both
def test_one_r_for_the_whole_batch(params, causal):
    one = apply(causal, params, Z, X, np.array([7], np.int32), MASK)
    np.testing.assert_allclose(one, apply(causal, params, Z, X, np.full(B, 7, np.int32), MASK), atol=1e-6)


@both
def test_gradients_are_finite(params, causal):
    def total(params, z, x):
        return (run(causal, params, z, x, R, MASK) ** 2).sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, Z, X)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradients))
    for gradient in gradients[1:]:
        assert not np.any(np.asarray(gradient)[~MASK])


def test_a_single_level_does_not_pool():
    net = UNet(filters=(4,), features=D, step_dim=2, causal=False, dtype=jnp.dtype("bfloat16"))

    def start(key, z, x, r, mask):
        prepared, variables = net.init_with_output(key, x, mask, method="prepare")
        out, call = net.init_with_output(key, z, r, prepared, mask)
        return prepared, out, {**variables, **call}

    prepared, out, call = jax.eval_shape(start, jax.random.key(0), Z, X, R, MASK)
    assert prepared.shape == (B, L, 4) and prepared.dtype == jnp.bfloat16
    assert out.shape == Z.shape and out.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(call)} == {jnp.dtype("float32")}
