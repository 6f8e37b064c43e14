"""Convolution over time: by hand, against flax's, and the form that CUDA gets against the native one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import normal

from t2diff_jax.nn.convolution import Convolution, by_product, convolve

CASES = [(causal, dilation) for causal in (True, False) for dilation in (1, 2, 3)]


def test_by_hand():
    """Taps 1, 10, 100 over 1, 2, 3: the last one stands at the place itself, or, not causal, the middle one."""
    x, params = jnp.array([[[1.0], [2.0], [3.0]]]), {"kernel": jnp.array([[[1.0]], [[10.0]], [[100.0]]])}
    for causal, expected in ((True, [100, 210, 321]), (False, [210, 321, 32])):
        net = Convolution(1, 3, causal, 1, False, jnp.dtype("float32"))
        np.testing.assert_allclose(net.apply({"params": params}, x)[0, :, 0], expected)


@pytest.mark.parametrize(("causal", "dilation"), CASES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_is_flaxs_with_the_same_parameters(causal, dilation, use_bias):
    x = jnp.asarray(normal(0, 2, 9, 4))
    own = Convolution(5, 3, causal, dilation, use_bias, jnp.dtype("float32"))
    how = dict(padding="CAUSAL" if causal else "SAME", kernel_dilation=dilation, use_bias=use_bias)
    theirs = nn.Conv(5, (3,), **how)
    variables = own.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), x))
    np.testing.assert_allclose(own.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_product_is_the_convolution_with_its_gradients(dilation):
    x, kernel = jnp.asarray(normal(0, 2, 9, 4)), jnp.asarray(normal(1, 3, 4, 5))
    tilt = normal(2, 2, 9 - 2 * dilation, 5)

    def of(way):
        return jax.value_and_grad(lambda x, k: (jnp.sin(way(x, k, dilation)) * tilt).sum(), argnums=(0, 1))(x, kernel)

    for a, b in zip(jax.tree.leaves(of(convolve)), jax.tree.leaves(of(by_product)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_cuda_gets_no_convolution_and_others_do():
    def lowered(platform):
        step = jax.jit(jax.grad(lambda x, k: convolve(x, k, 1).sum(), argnums=(0, 1)))
        return step.trace(jnp.ones((2, 9, 4)), jnp.ones((3, 4, 5))).lower(lowering_platforms=(platform,)).as_text()

    assert "convolution" not in lowered("cuda")
    assert "convolution" in lowered("cpu") and "convolution" in lowered("tpu")
