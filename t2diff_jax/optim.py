"""The learning-rate schedule and the optax chain."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from t2diff_jax.config import OptimConfig

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
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    rate, decay = learning_rate(config, steps), config.weight_decay
    if config.kernels == "adam":
        return optax.chain(*clip, optax.adamw(rate, weight_decay=decay))
    args = dict(weight_decay=decay, adam_weight_decay=decay, consistent_rms=_UPDATE_SIZE)
    return optax.chain(*clip, muon(rate, muon_weight_dimension_numbers=kernel_axes, **args))


def kernel_axes(params: Any) -> Any:
    """Of every kernel which axes go in and which come out, as a linear map; None for all other parameters."""

    def axes(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        *_, layer, name = ("", *(entry.key for entry in path))
        if name != "kernel" or leaf.ndim < 2:
            return None
        # Query, key and value split what comes out into heads; any other kernel has its one output axis at the end.
        inputs = 1 if layer in ("query", "key", "value") else leaf.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
