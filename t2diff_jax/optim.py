"""The learning-rate schedule and the optax chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t2diff_jax.config import OptimConfig
from t2diff_jax.muon import is_kernel, scale_by_stacked_muon
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

    With `optim.kernels` = muon the kernels of all layers take Muon's steps (`muon`) at the same learning rate. Tables,
    biases and scales stay with AdamW, there with Nesterov's momentum.

    With `optim.tables` = adagrad what has a row per item takes the steps of row-wise Adagrad instead.
    """
    rate, decay = learning_rate(config, steps), config.weight_decay
    rules = {"rest": optax.adamw(rate, weight_decay=decay, nesterov=config.kernels == "muon")}
    if config.kernels == "muon":
        rules["kernels"] = _decayed(optax.chain(scale_by_stacked_muon(), optax.scale(_UPDATE_SIZE)), decay, rate)
    if config.tables == "adagrad":
        scale = config.table_rate / config.learning_rate
        rules["tables"] = _decayed(scale_by_row_adagrad(), decay, lambda step: scale * rate(step))

    def rule_of(path: tuple, leaf: Any) -> str:
        named = "tables" if has_item_rows(path, leaf) else "kernels" if is_kernel(path, leaf) else "rest"
        return named if named in rules else "rest"

    by_rule = optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(rule_of, params))
    return optax.chain(clip_by_norm(config.clip_norm), by_rule) if config.clip_norm else by_rule


def _decayed(
    tx: optax.GradientTransformation, decay: float, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    return optax.chain(tx, optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))


def global_norm(tree: Any) -> jax.Array:
    """Norm of all entries of a tree of the parameters' shapes, float32 scalar.

    Whatever has no row per item is laid end to end first: one sum in place of a hundred.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    tables = [leaf for path, leaf in leaves if has_item_rows(path, leaf)]
    small = [leaf.reshape(-1) for path, leaf in leaves if not has_item_rows(path, leaf)]
    return optax.tree.norm([*tables, jnp.concatenate(small)] if small else tables)


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Updates whose `global_norm` is over `most` are scaled down to it."""

    def update(updates: Any, state: optax.EmptyState, _params: Any = None) -> tuple[Any, optax.EmptyState]:
        norm = global_norm(updates)
        return jax.tree.map(lambda g: jnp.where(norm < most, g, g / norm * most), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


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
