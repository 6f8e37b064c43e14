"""Numbers of parameters: of a model as configured, and of the layers that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from model_cases import make_batch

from t2diff_jax.config_values import from_mapping
from t2diff_jax.models import build_retriever
from t2diff_jax.types import Catalogue, Sizes


def parameters(config: ConfigDict, sizes: Sizes) -> dict:
    """Parameter shapes of a configuration on data of these sizes; nothing is computed."""
    retriever = build_retriever(from_mapping(config), sizes)
    categories = jnp.zeros((sizes.rows, 2), jnp.int32) if sizes.categories else None
    catalogue = Catalogue(jnp.zeros(sizes.rows), categories, None, sizes.rows - 1)
    batch = make_batch(sizes=sizes, lengths=(2,))
    return jax.eval_shape(retriever.init, jax.random.key(0), catalogue, batch)["params"]


def count(tree: object) -> int:
    """Number of values in all leaves (shapes are enough)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def conv(inputs: int, outputs: int, *, width: int = 3, bias: bool = True) -> int:
    return width * inputs * outputs + bias * outputs


def dense(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return conv(inputs, outputs, width=1, bias=bias)


def norm(width: int) -> int:
    return 2 * width


def block(d: int, hidden: int) -> int:
    """Query, key, value and output projections, two norms, feed-forward."""
    return 4 * dense(d, d) + 2 * norm(d) + dense(d, hidden) + dense(hidden, d)


def level(inputs: int, outputs: int, *, step: int = 32) -> int:
    """Of the U-Net: convolution, embedding of the diffusion step (0: none), norm."""
    return conv(inputs, outputs) + (dense(step, outputs) if step else 0) + norm(outputs)
