"""Mamba4Rec (Liu et al. 2024): selective state spaces (Gu & Dao 2023) in place of attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.config import MambaConfig
from t2diff_jax.models.sequential import SequentialNet


class Mamba4RecNet(SequentialNet):
    """`model.layers` blocks of a selective state space and a feed-forward network of `model.hidden` units."""

    def make_encoder(self) -> nn.Module:
        """The blocks."""
        m = self.model
        return MambaEncoder(m.mamba, m.layers, m.hidden, m.dropout, jnp.dtype(m.dtype))


class MambaEncoder(nn.Module):
    """Blocks of x = norm(x + mix(x)), x = norm(x + feed_forward(x)); padding adds nothing to a state.

    The published code adds x to mix(x) only where there are several blocks.
    """

    sizes: MambaConfig
    layers: int
    hidden: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, *, deterministic: bool) -> jax.Array:
        drop, width = nn.Dropout(self.dropout, deterministic=deterministic), x.shape[-1]
        x = drop(x)
        for i in range(self.layers):
            mixed = SelectiveStateSpace(self.sizes, self.dtype, name=f"mix_{i}")(x, valid)
            x = nn.LayerNorm(dtype=self.dtype, name=f"norm_mix_{i}")(x + drop(mixed))
            h = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name=f"hidden_{i}")(x))
            h = nn.Dense(width, dtype=self.dtype, name=f"out_{i}")(drop(h))
            x = nn.LayerNorm(dtype=self.dtype, name=f"norm_out_{i}")(x + drop(h))
        return x


class SelectiveStateSpace(nn.Module):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t, gated by silu(z_t).

    u comes from a causal depthwise convolution of the input; delta, B and C from u, so that a place can choose what to
    keep. The recurrence is computed in float32.
    """

    sizes: MambaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        width, state = x.shape[-1], self.sizes.state
        inner, rank = self.sizes.expand * width, -(-width // 16)
        u, gate = jnp.split(nn.Dense(2 * inner, use_bias=False, dtype=self.dtype, name="into")(x), 2, axis=-1)
        u = jnp.where(valid[..., None], u, 0)
        conv = nn.Conv(
            inner, (self.sizes.conv,), padding="CAUSAL", feature_group_count=inner, dtype=self.dtype, name="conv"
        )
        u = nn.silu(conv(u)).astype(jnp.float32)
        chosen = nn.Dense(rank + 2 * state, use_bias=False, name="choose")(u)
        low, b, c = jnp.split(chosen, (rank, rank + state), axis=-1)
        delta = nn.softplus(nn.Dense(inner, bias_init=_log_uniform_steps, name="delta")(low))
        log_a = self.param("log_a", _log_places, (inner, state))
        skip = self.param("skip", nn.initializers.ones, (inner,))
        delta = jnp.where(valid[..., None], delta, 0)  # exp(0) = 1: a state passes padding unchanged
        y = selective_scan(delta, u, b, c, jnp.exp(log_a), self.sizes.chunk) + skip[None, None] * u
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="back")(y.astype(self.dtype) * nn.silu(gate))


def selective_scan(delta: jax.Array, u: jax.Array, b: jax.Array, c: jax.Array, a: jax.Array, chunk: int) -> jax.Array:
    """y_t = c_t h_t of h_t = exp(-delta_t a) h_{t-1} + delta_t u_t b_t from h = 0, [B, L, E].

    It is linear in h, so that `chunk` places at a time (0: all) are computed by an associative scan; what is held of
    states, [B, chunk, E, S], is made again in the backward pass.

    delta, u: [B, L, E]; b, c: [B, L, S]; a: [E, S].
    """
    batch, length, inner = delta.shape
    size = chunk or length

    def cut(x: jax.Array) -> jax.Array:
        # A place with delta = 0 leaves the state as it is.
        x = jnp.pad(x, ((0, 0), (0, -length % size), (0, 0)))
        return x.reshape(batch, -1, size, x.shape[-1]).swapaxes(0, 1)

    @jax.checkpoint
    def step(h: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        delta, u, b, c = part
        decay = jnp.exp(-delta[..., None] * a[None, None])
        added = (delta * u)[..., None] * b[:, :, None]
        added = added.at[:, 0].add(decay[:, 0] * h)
        h = jax.lax.associative_scan(_after, (decay, added), axis=1)[1]
        return h[:, -1], jnp.einsum("bles,bls->ble", h, c)

    start = jnp.zeros((batch, inner, a.shape[1]), delta.dtype)
    _, y = jax.lax.scan(step, start, tuple(map(cut, (delta, u, b, c))))
    return y.swapaxes(0, 1).reshape(batch, -1, inner)[:, :length]


def _after(first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Two steps h -> decay h + added as one."""
    return first[0] * then[0], first[1] * then[0] + then[1]


def _log_places(_key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """log 1, log 2, ... in every row, as the published code starts from."""
    return jnp.log(jnp.broadcast_to(1.0 + jnp.arange(shape[1])[None], shape))


def _log_uniform_steps(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Biases whose softplus is log-uniform in [.001, .1], as the published code starts from."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, jnp.log(1e-3), jnp.log(1e-1)))
    return step + jnp.log(-jnp.expm1(-step))
