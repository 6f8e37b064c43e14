"""Muon's steps for the kernels of a model, with kernels of like shapes in one array.

A step multiplies each kernel's matrix fifteen times. One by one, forty kernels are half of what a small model starts on
an accelerator; as a few stacks they are a few products, and on a CPU they are quicker as well.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

_LEAST_SIDE = 64  # of a stack's matrices: below it more of them in one stack matter more than their size


def scale_by_stacked_muon() -> optax.GradientTransformation:
    """Momentum with its singular values brought to about 1 (Jordan 2024), times the root of the larger side.

    So entries have like sizes in all kernels (Liu et al. 2025). For a tree of kernels, all else masked as
    `optax.partition` does it. The state is optax's, of the stacks.
    """

    def axes(stacks: dict[str, jax.Array]) -> dict[str, MuonDimensionNumbers]:
        return {name: MuonDimensionNumbers(1, 2) for name in stacks}

    muon = scale_by_muon(weight_dimension_numbers=axes)

    def update(updates: Any, state: Any, _params: Any = None) -> tuple[Any, Any]:
        even, state = muon.update(stacked(updates), state)
        sized = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * math.sqrt(max(Form.of(path, leaf))), unstacked(even, updates)
        )
        return sized, state

    return optax.GradientTransformation(lambda params: muon.init(stacked(params)), update)


def stacked(kernels: Any) -> dict[str, jax.Array]:
    """{"AxB": [n, A, B]}, A <= B: matrices on their side where they are taller, filled up with zeros.

    Zeros stay zeros in Muon's polynomials of X X^T and touch no other entry, so that shapes may share a stack: sides
    are rounded up to powers of two.
    """
    stacks: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(kernels):
        form = Form.of(path, leaf)
        stacks.setdefault(form.stack, []).append(form.lay(leaf))
    return {name: jnp.stack(stack) for name, stack in stacks.items()}


def unstacked(stacks: dict[str, jax.Array], like: Any) -> Any:
    """The inverse of `stacked`; `like` has the structure and the shapes of the kernels."""
    rows = {name: iter(stack) for name, stack in stacks.items()}

    def leaf(path: tuple, like: jax.Array) -> jax.Array:
        form = Form.of(path, like)
        return form.take_up(next(rows[form.stack]), like.shape)

    return jax.tree_util.tree_map_with_path(leaf, like)


class Form(NamedTuple):
    """A kernel as a linear map: so many numbers go in, so many come out."""

    ins: int
    outs: int

    @classmethod
    def of(cls, path: tuple, kernel: Any) -> "Form":
        """Heads are outputs of query, key and value; any other kernel has its one output axis at the end."""
        layer = getattr(path[-2], "key", "") if len(path) > 1 else ""
        inputs = 1 if layer.split("_")[0] in ("query", "key", "value") else kernel.ndim - 1
        return cls(math.prod(kernel.shape[:inputs]), math.prod(kernel.shape[inputs:]))

    @property
    def stack(self) -> str:
        """The name of the stack."""
        return "{}x{}".format(*self._sides)

    def lay(self, kernel: jax.Array) -> jax.Array:
        """Its matrix in the stack."""
        matrix = kernel.reshape(self)
        matrix = matrix.T if self.ins > self.outs else matrix
        return jnp.pad(matrix, [(0, side - has) for side, has in zip(self._sides, matrix.shape, strict=True)])

    def take_up(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `lay`."""
        matrix = matrix[: min(self), : max(self)]
        return (matrix.T if self.ins > self.outs else matrix).reshape(shape)

    @property
    def _sides(self) -> tuple[int, int]:
        low, high = (max(_LEAST_SIDE, 2 ** (side - 1).bit_length()) for side in (min(self), max(self)))
        return low, high


def is_kernel(path: tuple, leaf: Any) -> bool:
    """Whether a parameter is the matrix of a layer."""
    return getattr(path[-1], "key", "") == "kernel" and leaf.ndim > 1
