"""What the device can do at most: matrix products by precision and copies of memory, measured by their own programs.

python benchmarks/ceilings.py [--size 8192] [--copy_mb 512]
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
from measure import emit, seconds

# Name of a ceiling: (type of the operands, precision of the product).
PRODUCTS = {
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
    "float32_default": (jnp.float32, jax.lax.Precision.DEFAULT),  # on a GPU or TPU with rounded operands
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
}


def ceilings(size: int = 8192, copy_mb: int = 512) -> dict[str, float]:
    """TFLOP/s of square products of random numbers by precision, and `copy`: GB/s read and written by a copy."""
    found = {}
    for name, (dtype, precision) in PRODUCTS.items():
        a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        call = jax.jit(lambda a, b, p=precision: jnp.matmul(a, b, precision=p))
        found[name] = 2 * size**3 / _each(lambda f=call, a=a, b=b: f(a, b)) / 1e12
    numbers = jax.random.normal(jax.random.key(2), (copy_mb * 2**18,))
    copy = jax.jit(lambda x: x + 1)
    found["copy"] = 2 * numbers.nbytes / _each(lambda: copy(numbers)) / 1e9
    return found


def _each(call: Callable[[], jax.Array]) -> float:
    """Seconds of one of several calls in a row, so that their start is hidden."""
    return seconds(lambda: [call() for _ in range(4)][-1], repeats=5)["min"] / 4


def main() -> None:
    """Measures and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--copy_mb", type=int, default=512)
    args = parser.parse_args()
    emit("ceilings", size=args.size, copy_mb=args.copy_mb, **ceilings(args.size, args.copy_mb))


if __name__ == "__main__":
    main()
