"""A digest sees every bit and every place, and no sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t2diff_jax.array_digest import array_digest


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_digest_does_not_depend_on_the_sharding():
    x = np.random.default_rng(0).normal(size=(16, 8, 3)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = [(), ("data",), (None, "model"), ("data", "model"), (("data", "model"),)]
    digests = {tuple(map(int, array_digest(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*s)))))) for s in specs}
    assert digests == {tuple(map(int, array_digest(jnp.asarray(x))))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8", "bool", "uint16"])
def test_digest_sees_every_bit_and_every_place(dtype):
    rng = np.random.default_rng(1)
    x = np.asarray(jnp.asarray(rng.integers(0, 2, size=(3, 5)), dtype))
    before = jax.device_get(array_digest(jnp.asarray(x)))
    word = np.dtype(f"u{x.dtype.itemsize}")
    for place in range(x.size):
        for bit in range(1 if dtype == "bool" else 8 * x.dtype.itemsize):
            words = x.copy().view(word).reshape(-1)
            words[place] ^= word.type(1 << bit)
            after = jax.device_get(array_digest(jnp.asarray(words.view(x.dtype).reshape(x.shape))))
            assert all(a != b for a, b in zip(after, before, strict=True))
    swapped = x.copy().reshape(-1)
    i, j = int(np.argmax(swapped != 0)), int(np.argmax(swapped == 0))
    swapped[[i, j]] = swapped[[j, i]]
    assert jax.device_get(array_digest(jnp.asarray(swapped.reshape(x.shape)))) != before


def test_digest_against_a_naive_sum_and_sign_swaps():
    def mix(h):
        h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
        h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
        return h ^ (h >> 16)

    x = np.array([[1.0, -1.0, 2.0], [0.5, 0.0, -0.0]], np.float32)
    words = [int(w) for w in x.view(np.uint32).reshape(-1)]
    naive = tuple(
        sum(mix(w ^ mix((i + salt) % 2**32)) for i, w in enumerate(words)) % 2**32 for salt in (0x9E3779B9, 0x6A09E667)
    )
    assert tuple(map(int, array_digest(jnp.asarray(x)))) == naive
    for a, b in ((0, 1), (4, 5)):  # pairs that differ in the sign bit only
        swapped = x.copy().reshape(-1)
        swapped[[a, b]] = swapped[[b, a]]
        assert tuple(map(int, array_digest(jnp.asarray(swapped.reshape(x.shape))))) != naive
