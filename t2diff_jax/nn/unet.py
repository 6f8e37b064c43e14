"""The estimator mu_theta: a masked 1-D U-Net over the time axis (T2Diff section 4.2).

Predicts the clean drift from [z_r ; X] and r. Nothing that stands in a masked position reaches another position: inputs
of every convolution are zeroed there, pooling skips them. Windows are right-aligned, and so is the pooling grid.

The causal form is what that network would say at each position if the window ended there. Every position then has a
pooling grid of its own, so nothing can be thinned out: levels keep the full length, and reach further back by dilation.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2diff_jax.nn.convolution import Convolution


def step_embedding(r: Int[Array, "*B"], dim: int) -> Float[Array, "*B dim"]:
    """Sinusoidal embedding of the diffusion step, `dim` even: sines then cosines at wavelengths 2 pi .. 2 pi 10^4."""
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(dim // 2) / max(dim // 2 - 1, 1))
    angles = r[..., None].astype(jnp.float32) * frequencies.reshape((1,) * r.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Level(nn.Module):
    """Convolution, step embedding (None: without), layer norm, swish."""

    features: int
    causal: bool
    dilation: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], step: Float[Array, "#B 1 E"] | None) -> Float[Array, "B L F"]:
        x = Convolution(self.features, 3, self.causal, self.dilation, True, self.dtype, name="conv")(x)
        if step is not None:
            x = x + nn.Dense(self.features, dtype=self.dtype, name="step")(step)
        return nn.swish(nn.LayerNorm(dtype=self.dtype, name="norm")(x))


def pool(x: Float[Array, "B L C"], mask: Bool[Array, "B L"]) -> tuple[Float[Array, "B H C"], Bool[Array, "B H"]]:
    """Max over neighbouring pairs of valid positions; a pair without one is masked and zero. L must be even."""
    pairs = mask.reshape(mask.shape[0], -1, 2)
    halves = jnp.where(pairs[..., None], x.reshape(*pairs.shape, x.shape[-1]), -jnp.inf).max(axis=2)
    mask = pairs.any(axis=2)
    return jnp.where(mask[..., None], halves, 0), mask


def trailing_pool(
    x: Float[Array, "B L C"], mask: Bool[Array, "B L"], reach: int
) -> tuple[Float[Array, "B L C"], Bool[Array, "B L"]]:
    """Max over each position and the one `reach` before it, where valid; the causal counterpart of `pool`."""

    def before(a: Array) -> Array:
        return jnp.pad(a, ((0, 0), (reach, 0)) + ((0, 0),) * (a.ndim - 2))[:, : a.shape[1]]

    own, earlier = jnp.where(mask[..., None], x, -jnp.inf), jnp.where(before(mask)[..., None], before(x), -jnp.inf)
    mask = mask | before(mask)
    return jnp.where(mask[..., None], jnp.maximum(own, earlier), 0), mask


def causal_reach(filters: tuple[int, ...]) -> int:
    """How many places before its own the causal U-Net of these filters reads."""
    levels = range(1, len(filters))
    down = sum(2 ** (i - 1) + 2 * 2**i for i in levels)  # pooling, convolution
    return 2 + down + sum(2 * 2 ** (i - 1) for i in levels)


class UNet(nn.Module):
    """Estimates the clean drift. `prepare` does what does not depend on r, once per reverse process.

    Attributes:
      filters: channels per level; every level sees twice as far as the one above it.
      features: D, width of the drift.
      step_dim: width of the step embedding; 0 for a network that is told no diffusion step.
      causal: True lets no position see a later one, so that every position can be the last.
    """

    filters: tuple[int, ...]
    features: int
    step_dim: int
    causal: bool
    dtype: jnp.dtype

    def setup(self) -> None:
        args = dict(dtype=self.dtype)
        if self.step_dim:
            self.step_mlp = nn.Dense(self.step_dim, **args)
            self.first_step = nn.Dense(self.filters[0], **args)
        first = dict(taps=3, causal=self.causal, dilation=1, **args)
        self.condition = Convolution(self.filters[0], use_bias=True, **first)
        self.drift = Convolution(self.filters[0], use_bias=False, **first)
        self.first_norm = nn.LayerNorm(**args)
        dilations = [2**i if self.causal else 1 for i in range(len(self.filters))]
        self.down = [Level(f, self.causal, d, **args) for f, d in zip(self.filters[1:], dilations[1:], strict=True)]
        self.up = [nn.Dense(f, **args) for f in self.filters[:-1]]
        self.merge = [Level(f, self.causal, d, **args) for f, d in zip(self.filters[:-1], dilations[:-1], strict=True)]
        self.out = nn.Dense(self.features, dtype=jnp.float32)

    def prepare(self, condition: Float[Array, "B L C"], mask: Bool[Array, "B L"]) -> Float[Array, "B P F"]:
        """The condition's share of the first convolution over [z_r ; X]; P is L rounded up to whole pooling cells."""
        return self.condition(self._cells(condition * mask[..., None]))

    def __call__(
        self,
        z: Float[Array, "B L D"],
        r: Int[Array, "#B"] | None,
        prepared: Float[Array, "B P F"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B L D"]:
        """Estimate of z_0, float32; zero at masked positions."""
        step, masks = None, [self._cells(mask)]
        x = self.drift(self._cells(z * mask[..., None])) + prepared
        if self.step_dim:
            step = nn.swish(self.step_mlp(step_embedding(r, self.step_dim)))[:, None]
            x = x + self.first_step(step)
        skips = [nn.swish(self.first_norm(x))]
        for i, level in enumerate(self.down):
            x, pooled = trailing_pool(skips[-1], masks[-1], 2**i) if self.causal else pool(skips[-1], masks[-1])
            masks.append(pooled)
            skips.append(level(x, step))
        x = skips.pop()
        for i in reversed(range(len(self.up))):
            x = self.up[i](x) if self.causal else jnp.repeat(self.up[i](x), 2, axis=1)
            x = jnp.concatenate([x, skips[i]], axis=-1) * masks[i][..., None]
            x = self.merge[i](x, step)
        return self.out(x)[:, -mask.shape[1] :] * mask[..., None]

    @nn.nowrap
    def _cells(self, x: Array) -> Array:
        missing = 0 if self.causal else -x.shape[1] % 2 ** (len(self.filters) - 1)
        return jnp.pad(x, ((0, 0), (missing, 0)) + ((0, 0),) * (x.ndim - 2))
