"""The diffusion module apart from its network: scale, noising and reverse process of the interest drift (section 4.2).

The drift is divided by its running root mean square before it is diffused, as the scale factor of latent diffusion, so
that the unit noise of the process does not drown it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t2diff_jax import rng
from t2diff_jax.config import DiffusionConfig
from t2diff_jax.diffusion.process import drift, q_sample
from t2diff_jax.diffusion.samplers import Estimate, Known, Noise, ddim, ddpm
from t2diff_jax.diffusion.schedule import Schedule, make_schedule
from t2diff_jax.types import Batch

Stats = dict[str, jax.Array]


class Noised(NamedTuple):
    """One training draw of algorithm 1: z_0 at unit variance and z_r [B, L, D], r [B], and the updated statistics."""

    z0: jax.Array
    z_r: jax.Array
    r: jax.Array
    stats: Stats


class Generated(NamedTuple):
    """What fills the slots of one training step: they (None: nothing does), its loss (scalar), updated statistics."""

    slots: jax.Array | None
    loss: jax.Array
    stats: Stats


def schedule_of(config: DiffusionConfig) -> Schedule:
    """The noise schedule of a configuration."""
    return make_schedule(config.schedule, steps=config.steps, scale=config.scale, rate=config.rate)


def clean(config: DiffusionConfig, x: jax.Array, target: jax.Array) -> jax.Array:
    """z_0 of every behaviour [B, L, D]: the drift to what came next, or what came next itself (`diffusion.target`)."""
    if config.target == "drift":
        return drift(x, target)
    return jnp.concatenate([x[:, 1:], target[:, None]], axis=1)


def generated_item(config: DiffusionConfig, x: jax.Array, z0: jax.Array) -> jax.Array:
    """xhat: the item that an estimate of z_0 leads to from the behaviours x."""
    return x + z0 if config.target == "drift" else z0


def leading_to(config: DiffusionConfig, x: jax.Array, item: jax.Array) -> jax.Array:
    """z_0 that leads from the behaviours x to an item: the inverse of `generated_item`."""
    return item - x if config.target == "drift" else item


def noised_drift(
    config: DiffusionConfig, stats: Stats, x: jax.Array, target: jax.Array, batch: Batch, key: jax.Array
) -> Noised:
    """Draws r ~ U{1..T} and z_r for behaviours x [B, L, D] and their target [B, D]; updates the scale."""
    key_r, key_noise = jax.random.split(key)
    z0 = clean(config, x, target)
    stats = update_drift_scale(stats, z0, batch["history"] > 0, batch["weight"], config.scale_decay)
    r = jax.random.randint(key_r, x.shape[:1], 1, config.steps + 1)
    z0 = z0 / drift_scale(stats)
    return Noised(z0, q_sample(schedule_of(config), z0, r, jax.random.normal(key_noise, z0.shape)), r, stats)


def reverse(config: DiffusionConfig, estimate: Estimate, noise: Noise, known: Known | None) -> jax.Array:
    """The reverse process from pure noise by the configured sampler: an estimate of z_0 at unit variance."""
    if config.sampler == "ddpm":
        return ddpm(schedule_of(config), estimate, noise, known)
    return ddim(schedule_of(config), estimate, noise, config.sampler_steps, known)


def initial_stats() -> Stats:
    """The running sum of the drift's mean square, and its weight, before the first step."""
    return {"drift_square": jnp.zeros(()), "drift_weight": jnp.zeros(())}


def drift_scale(stats: Stats) -> jax.Array:
    """Running root mean square of the drift; 1 before the first step."""
    seen = stats["drift_weight"] > 0
    square = stats["drift_square"] / jnp.where(seen, stats["drift_weight"], 1)
    return jnp.where(seen, jnp.sqrt(jnp.maximum(square, 1e-12)), 1.0)


def update_drift_scale(stats: Stats, z0: jax.Array, mask: jax.Array, weight: jax.Array, decay: float) -> Stats:
    """Bias-corrected running mean of the drift's square over valid positions; unchanged by an empty batch."""
    valid = mask * weight[:, None]
    total = valid.sum()
    square = (jnp.square(z0).mean(axis=-1) * valid).sum() / jnp.maximum(total, 1)
    share = jnp.where(total > 0, 1 - decay, 0.0)
    return {
        "drift_square": (1 - share) * stats["drift_square"] + share * square,
        "drift_weight": (1 - share) * stats["drift_weight"] + share,
    }


def training_noise(key: jax.Array, shape: tuple[int, ...]) -> Noise:
    """Noise of a training step for the reverse process; one stream per r."""
    return lambda r: jax.random.normal(jax.random.fold_in(key, r), shape)


def noise_per_user(keys: jax.Array, intent: jax.Array, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Noise [B, L, D] of the reverse process at inference: named by the request's key [B], the intent and r."""

    def noise(r: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(key, intent), r)
            # Drawn from the newest behaviour backwards: a longer window leaves the noise of the others as it is.
            return jax.random.normal(key, shape[1:])[::-1]

        return jax.vmap(one)(keys)

    return noise


def noise_per_intent(intent: jax.Array, shape: tuple[int, ...]) -> Noise:
    """Noise of the reverse process that is the same for all requests and positions: named by intent and r alone.

    shape: [..., D].
    """
    stream = rng.at_step(rng.stream(0, "intents"), intent)
    return lambda r: jnp.broadcast_to(jax.random.normal(jax.random.fold_in(stream, r), shape[-1:]), shape)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine over the last axis; 0 for a zero vector."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / jnp.maximum(norms, 1e-12)
