"""What can fill the slot: generators of the next item at every position, given what is known there.

T2Diff's is diffusion; the others are the yardstick that it is measured by. All work in units of the drift's scale. All
but DiffuRec's have the same network (`nn.denoiser.Denoiser`): they differ in how it learns and what it draws from.
`apply(method, *args)` calls a method of the network that owns the parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from t2diff_jax.config import DiffusionConfig
from t2diff_jax.diffusion.process import q_sample
from t2diff_jax.diffusion.samplers import Noise
from t2diff_jax.losses import divergence_from_normal, position_mean, weighted_mean
from t2diff_jax.models.drift import reverse, schedule_of

Apply = Callable[..., jax.Array]


class Context(NamedTuple):
    """What is known at P positions, in units of the drift's scale.

    Attributes:
      x: behaviours [B, P, D].
      mask: which of them there are [B, P].
      condition: what the drift encoder says of each position [B, P, D]; None for generators of the whole window.
    """

    x: jax.Array
    mask: jax.Array
    condition: jax.Array | None


class Truth(NamedTuple):
    """What a generator learns from.

    Attributes:
      z0: what came next at every position, at unit variance [B, L, D].
      weight: of the windows [B].
      cross_entropy: estimates of z0 [B, L, D] -> cross-entropy of the items they stand for against the catalogue.
    """

    z0: jax.Array
    weight: jax.Array
    cross_entropy: Callable[[jax.Array], jax.Array]


class Lesson(NamedTuple):
    """A training step of a generator: its loss, and its estimate of z0 made with the truth's help [B, L, D]."""

    loss: jax.Array
    estimate: jax.Array


@runtime_checkable
class Generator(Protocol):
    """Learns what comes next, and draws it. Instances are hashable records without parameters.

    Attributes:
      whole_window: draws for the last position only together with all others.
    """

    whole_window: ClassVar[bool]

    def learn(self, apply: Apply, frozen: Apply, truth: Truth, context: Context, key: jax.Array) -> Lesson:
        """One training step; `frozen` is `apply` with parameters that do not learn."""

    def draw(self, apply: Apply, context: Context, noise: Noise) -> jax.Array:
        """zhat_0 [B, P, D] without the truth; here `apply` answers with what an output stands for."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """T2Diff's: the estimator learns z_0 from z_r at all r (23); drawn by the reverse process."""

    config: DiffusionConfig
    whole_window: ClassVar[bool] = False

    def learn(self, apply: Apply, _frozen: Apply, truth: Truth, context: Context, key: jax.Array) -> Lesson:
        """See `Generator`."""
        z_r, r = _noised(self.config, truth.z0, key)
        estimate = apply("denoise", z_r, r, context.condition)
        return Lesson(_error(self.config, truth, estimate, context), estimate)

    def draw(self, apply: Apply, context: Context, noise: Noise) -> jax.Array:
        """See `Generator`."""
        return reverse(self.config, lambda z, r: apply("denoise", z, r[:, None], context.condition), noise, None)


@dataclasses.dataclass(frozen=True)
class Regressor:
    """The same network and loss without noise: the mean of what may come next.

    With `diffusion.noise=intent` each of M fixed vectors stands where noise would when it draws, and none when it
    learns: what several intents are worth without diffusion.
    """

    config: DiffusionConfig
    whole_window: ClassVar[bool] = False

    def learn(self, apply: Apply, _frozen: Apply, truth: Truth, context: Context, _key: jax.Array) -> Lesson:
        """See `Generator`."""
        estimate = _decoded(self.config, apply, jnp.zeros_like(truth.z0), context)
        return Lesson(_error(self.config, truth, estimate, context), estimate)

    def draw(self, apply: Apply, context: Context, noise: Noise) -> jax.Array:
        """See `Generator`."""
        fixed = self.config.noise == "intent"
        given = noise(jnp.int32(self.config.steps + 1)) if fixed else jnp.zeros_like(context.x)
        return _decoded(self.config, apply, given, context)


@dataclasses.dataclass(frozen=True)
class Variational:
    """A conditional variational auto-encoder with prior N(0, I) (Sohn et al. 2015).

    Its loss is the negative evidence bound of a decoder of variance w / 2, scaled by w / D, w = `diffusion.kl_weight`.
    """

    config: DiffusionConfig
    whole_window: ClassVar[bool] = False

    def learn(self, apply: Apply, _frozen: Apply, truth: Truth, context: Context, key: jax.Array) -> Lesson:
        """See `Generator`."""
        mean, log_variance = jnp.split(apply("recognise", truth.z0, _top(self.config), context.condition), 2, axis=-1)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        estimate = _decoded(self.config, apply, z, context)
        loss = _square_error(truth, estimate) + self.config.kl_weight * divergence_from_normal(mean, log_variance)
        return Lesson(_mean(loss, truth, context), estimate)

    def draw(self, apply: Apply, context: Context, noise: Noise) -> jax.Array:
        """See `Generator`."""
        return _decoded(self.config, apply, noise(jnp.int32(self.config.steps + 1)), context)


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """A conditional generative adversarial network (Mirza & Osindero 2014), both players in one step.

    The judge learns to tell z_0 from the draw, the generator to be taken for z_0 (the loss that does not saturate).
    """

    config: DiffusionConfig
    whole_window: ClassVar[bool] = False

    def learn(self, apply: Apply, frozen: Apply, truth: Truth, context: Context, key: jax.Array) -> Lesson:
        """See `Generator`."""
        fake, top = _decoded(self.config, apply, jax.random.normal(key, truth.z0.shape), context), _top(self.config)
        known = jax.lax.stop_gradient(context.condition)
        told = jax.nn.softplus(-apply("judge", truth.z0, top, known))
        told += jax.nn.softplus(apply("judge", jax.lax.stop_gradient(fake), top, known))
        fooled = jax.nn.softplus(-frozen("judge", fake, top, known))
        return Lesson(_mean((told + fooled)[..., 0], truth, context), fake)

    def draw(self, apply: Apply, context: Context, noise: Noise) -> jax.Array:
        """See `Generator`."""
        return _decoded(self.config, apply, noise(jnp.int32(self.config.steps + 1)), context)


@dataclasses.dataclass(frozen=True)
class DiffuRec:
    """DiffuRec's denoiser (Li et al. 2023): a transformer over behaviours into which the noised next ones are mixed.

    It learns by the cross-entropy of the item that it estimates, and draws at every position from noise alone: what was
    mixed in of a known next item would reach the slot of the position that has to say it.
    """

    config: DiffusionConfig
    whole_window: ClassVar[bool] = True

    def learn(self, apply: Apply, _frozen: Apply, truth: Truth, context: Context, key: jax.Array) -> Lesson:
        """See `Generator`."""
        key_noise, key_share = jax.random.split(key)
        z_r, r = _noised(self.config, truth.z0, key_noise)
        share = jax.random.normal(key_share, truth.z0.shape)
        estimate = apply("denoise_window", z_r, r, context.x, context.mask, share)
        return Lesson(truth.cross_entropy(estimate), estimate)

    def draw(self, apply: Apply, context: Context, noise: Noise) -> jax.Array:
        """See `Generator`."""
        x, mask, steps = context.x, context.mask, self.config.steps

        def estimate(z: jax.Array, r: jax.Array) -> jax.Array:
            # The streams up to T + 2 are the sampler's.
            return apply("denoise_window", z, r[:, None], x, mask, noise(steps + 2 + r[0]))

        return reverse(self.config, estimate, noise, None)


def make_generator(slot: str, config: DiffusionConfig) -> Generator:
    """The generator that `model.slot` names."""
    match slot:
        case "diffusion":
            return Diffusion(config)
        case "regressor":
            return Regressor(config)
        case "vae":
            return Variational(config)
        case "gan":
            return Adversarial(config)
        case "diffurec":
            return DiffuRec(config)
    raise ValueError(f"{slot}: not a generator")


def _top(config: DiffusionConfig) -> jax.Array:
    return jnp.full((1, 1), config.steps, jnp.int32)


def _decoded(config: DiffusionConfig, apply: Apply, z: jax.Array, context: Context) -> jax.Array:
    return apply("denoise", z, _top(config), context.condition)


def _noised(config: DiffusionConfig, z0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z_r [B, L, D] and r ~ U{1..T} [B, L], one for every position."""
    key_r, key_noise = jax.random.split(key)
    r = jax.random.randint(key_r, z0.shape[:2], 1, config.steps + 1)
    return q_sample(schedule_of(config), z0, r, jax.random.normal(key_noise, z0.shape)), r


def _error(config: DiffusionConfig, truth: Truth, estimate: jax.Array, context: Context) -> jax.Array:
    """Of an estimate of z_0: its square error, or the cross-entropy of the item that it names."""
    if config.estimate == "catalogue":
        return truth.cross_entropy(estimate)
    return _mean(_square_error(truth, estimate), truth, context)


def _square_error(truth: Truth, estimate: jax.Array) -> jax.Array:
    return jnp.square(truth.z0 - estimate).mean(axis=-1)


def _mean(values: jax.Array, truth: Truth, context: Context) -> jax.Array:
    return weighted_mean(position_mean(values, context.mask), truth.weight)
