"""The learning-rate schedule and the optax chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from t2diff_jax.config import OptimConfig
from t2diff_jax.sharding import has_item_rows

_UPDATE_SIZE = 0.2  # root mean square of a Muon update over the learning rate, near AdamW's (Liu et al. 2025)


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0 at `decay_steps` (`steps` if that is 0), or a constant."""
    if config.decay == "constant":
        if config.warmup == 0:
            return optax.constant_schedule(config.learning_rate)
        return optax.linear_schedule(0.0, config.learning_rate, config.warmup)
    end = config.decay_steps or steps
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup_steps=config.warmup, decay_steps=max(end, config.warmup + 1)
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm (where on), then AdamW (Adam where `weight_decay` is 0).

    With `optim.kernels` = muon the kernels of all layers take Muon's steps (Jordan 2024) at the same learning rate:
    momentum with its singular values brought to 1. Tables, biases and scales stay with AdamW, there with Nesterov's
    momentum.

    With `optim.tables` = adagrad what has a row per item takes the steps of row-wise Adagrad instead.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    rate, decay = learning_rate(config, steps), config.weight_decay
    if config.kernels == "adam":
        rest = optax.adamw(rate, weight_decay=decay)
    else:
        args = dict(weight_decay=decay, adam_weight_decay=decay, consistent_rms=_UPDATE_SIZE)
        rest = muon(rate, muon_weight_dimension_numbers=kernel_axes, **args)
    if config.tables == "adam":
        return optax.chain(*clip, rest)
    scale = config.table_rate / config.learning_rate
    own_rate = optax.scale_by_learning_rate(lambda step: scale * rate(step))
    tables = optax.chain(scale_by_row_adagrad(), optax.add_decayed_weights(decay), own_rate)
    return optax.chain(*clip, optax.partition({"tables": tables, "rest": rest}, _tables_and_rest))


class RowAdagradState(NamedTuple):
    """Sums of the mean squares of each row's gradients, float32 [R] for a parameter [R, ...]."""

    squares: Any


def scale_by_row_adagrad() -> optax.GradientTransformation:
    """g / sqrt(s), s the sum over all steps of the mean square of the row's gradient (row-wise Adagrad, as in DLRM).

    One number a row is kept, where Adam keeps two rows. A row without a gradient stays; the first step of a row has a
    root mean square of 1.
    """

    def init(params: Any) -> RowAdagradState:
        return RowAdagradState(jax.tree.map(lambda p: jnp.zeros(p.shape[0]), params))

    def update(updates: Any, state: RowAdagradState, _params: Any = None) -> tuple[Any, RowAdagradState]:
        squares = jax.tree.map(
            lambda g, s: s + jnp.square(g).mean(axis=tuple(range(1, g.ndim))), updates, state.squares
        )

        def scaled(g: jax.Array, s: jax.Array) -> jax.Array:
            return g * jnp.where(s > 0, jax.lax.rsqrt(jnp.where(s > 0, s, 1)), 0).reshape(-1, *[1] * (g.ndim - 1))

        return jax.tree.map(scaled, updates, squares), RowAdagradState(squares)

    return optax.GradientTransformation(init, update)


def _tables_and_rest(params: Any) -> Any:
    def label(path: tuple, leaf: Any) -> str:
        return "tables" if has_item_rows(path, leaf) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def kernel_axes(params: Any) -> Any:
    """Of every kernel which axes go in and which come out, as a linear map; None for all other parameters."""

    def axes(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        *_, layer, name = ("", *(entry.key for entry in path))
        if name != "kernel" or leaf.ndim < 2:
            return None
        # Query, key and value split what comes out into heads; any other kernel has its one output axis at the end.
        inputs = 1 if layer.split("_")[0] in ("query", "key", "value") else leaf.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
