"""A digest of an array's bits that does not depend on how the array is sharded."""

import jax
import jax.numpy as jnp

_SALTS = (0x9E3779B9, 0x6A09E667)  # fractional parts of the golden ratio and of sqrt(2): any two constants would do


@jax.jit  # called per array: a state has many arrays and few shapes
def array_digest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two uint32 scalars over the bits and the places of all elements; the same for every sharding and device count.

    With w_i the 32-bit words of `x` and h a bijection of uint32: sum_i h(w_i xor h(i + salt)) mod 2^32, for two salts.
    A term is a bijection of its word, so a change within one word always shows; any other (swapped elements, zeroed
    blocks) escapes with probability 2^-64. A plain weighted sum would miss the swap of a value with its negative.
    """
    words = _words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # no reshape: that would gather a sharded array
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    a, b = (jnp.sum(_mix(words ^ _mix(index + jnp.uint32(salt))), dtype=jnp.uint32) for salt in _SALTS)
    return a, b


def _words(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    """Bijection of uint32 that spreads every bit: xor-shifts and odd multiplications, MurmurHash3's constants."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
