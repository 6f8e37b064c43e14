"""The learning-rate schedule and the optax chain."""

import optax

from t2diff_jax.config import OptimConfig


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
    """Clipping by the global norm (where on), then AdamW (Adam where `weight_decay` is 0)."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, optax.adamw(learning_rate(config, steps), weight_decay=config.weight_decay))
