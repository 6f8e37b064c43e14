"""Attention: masked multi-head self-attention, transformer block, DIN's target attention (T2Diff section 4.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def lag_bucket(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor(log2(seconds + 1)), int32 in 0..31; negative seconds count as 0."""
    return 31 - jax.lax.clz(jnp.maximum(seconds, 0).astype(jnp.uint32) + 1).astype(jnp.int32)


def masked_softmax(logits: Float[Array, "... J"], mask: Bool[Array, "... J"]) -> Float[Array, "... J"]:
    """Softmax over the last axis in float32, among unmasked entries; all zero where nothing is unmasked."""
    weights = jax.nn.softmax(jnp.where(mask, logits.astype(jnp.float32), jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.where(mask, weights, 0)


def softmax_beside(
    logits: Float[Array, "*H J"], mask: Bool[Array, "*#H J"], own: Float[Array, "*H"]
) -> tuple[Float[Array, "*H J"], Float[Array, "*H"]]:
    """Softmax in float32 over the unmasked logits and one more, `own`, which always counts: (weights, own weight).

    As over both side by side, but no array of J + 1 entries is made: its rows would not begin where memory is read.
    """
    logits, own = jnp.where(mask, logits.astype(jnp.float32), -jnp.inf), own.astype(jnp.float32)
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1), own))
    weights, own = jnp.exp(logits - top[..., None]), jnp.exp(own - top)
    total = weights.sum(axis=-1) + own
    return weights / total[..., None], own / total


def rotate(x: Float[Array, "B L H E"]) -> Float[Array, "B L H E"]:
    """Rotary positions (Su et al. 2021): turns pair (e, e + E/2) of the vector at place l from the right end by -l w_e.

    A product of two rotated vectors depends on their distance alone, so no place in the window is special. E is even.
    """
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half) / half)
    angle = (jnp.arange(x.shape[1]) - x.shape[1] + 1)[:, None, None] * frequency[None, None]
    cos, sin = jnp.cos(angle)[None].astype(x.dtype), jnp.sin(angle)[None].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention with an explicit mask; `rotary` adds relative positions.

    With a positive `last` only so many places, the last ones, ask; all are asked.
    """

    heads: int
    rotary: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "#B #L L"], last: int = 0) -> Float[Array, "B P D"]:
        width = x.shape[-1] // self.heads
        query, key, value = (
            nn.DenseGeneral((self.heads, width), dtype=self.dtype, name=name)(part)
            for name, part in (("query", x[:, -last:]), ("key", x), ("value", x))
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        logits = jnp.einsum("blhe,bjhe->bhlj", query, key) / width**0.5
        weights = masked_softmax(logits, mask[:, None, -last:]).astype(self.dtype)
        mixed = jnp.einsum("bhlj,bjhe->blhe", weights, value)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), dtype=self.dtype, name="out")(mixed)


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed-forward(norm(x)); of `last` places alone if positive."""

    heads: int
    hidden: int
    dropout: float
    rotary: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "#B #L L"], *, deterministic: bool, last: int = 0
    ) -> Float[Array, "B P D"]:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        h = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x)
        x = x[:, -last:] + drop(SelfAttention(self.heads, self.rotary, self.dtype, name="attention")(h, mask, last))
        h = nn.LayerNorm(dtype=self.dtype, name="norm_hidden")(x)
        h = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(h))
        return x + drop(nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(h))


class TransformerEncoder(nn.Module):
    """A stack of blocks and a final norm. Positions are rotary, or learned and counted from the right end.

    With a positive `last` the states of so many places, the last ones: the last block computes no others.
    """

    layers: int
    heads: int
    hidden: int
    dropout: float
    rotary: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "#B #L L"], *, deterministic: bool, last: int = 0
    ) -> Float[Array, "B P D"]:
        if not self.rotary:
            x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[-2:])[None]
        x = x.astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        for i in range(self.layers):
            block = TransformerBlock(self.heads, self.hidden, self.dropout, self.rotary, self.dtype, name=f"block_{i}")
            x = block(x, mask, deterministic=deterministic, last=last if i == self.layers - 1 else 0)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class SlotAttention(nn.Module):
    """Pre-norm block: each of P slots attends to the behaviours that its mask allows and to itself, not to others.

    The P slots stand at the last P places of the behaviours.
    """

    heads: int
    hidden: int
    dropout: float
    rotary: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        slots: Float[Array, "B P D"],
        behaviours: Float[Array, "B L D"],
        mask: Bool[Array, "#B P L"],
        *,
        deterministic: bool,
    ) -> Float[Array, "B P D"]:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        slots = slots + drop(self._attend(slots, behaviours, mask))
        h = nn.LayerNorm(dtype=self.dtype, name="norm_hidden")(slots)
        h = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(h))
        return slots + drop(nn.Dense(slots.shape[-1], dtype=self.dtype, name="out")(h))

    def _attend(self, slots: Array, behaviours: Array, mask: Array) -> Array:
        width, dtype = slots.shape[-1] // self.heads, self.dtype
        norm = nn.LayerNorm(dtype=dtype, name="norm_attention")
        slots, behaviours = norm(slots), norm(behaviours)
        query, key, value = (
            nn.DenseGeneral((self.heads, width), dtype=dtype, name=n) for n in ("query", "key", "value")
        )
        q, k = query(slots) / width**0.5, key(behaviours)
        # A slot's product with itself has distance 0: it is the same with and without rotation.
        turned = (rotate(q), rotate(k)) if self.rotary else (q, k)
        others = jnp.einsum("bphe,blhe->bhpl", *turned)
        own = jnp.einsum("bphe,bphe->bhp", q, key(slots))
        weights, own = (w.astype(dtype) for w in softmax_beside(others, mask[:, None], own))
        mixed = jnp.einsum("bhpl,blhe->bphe", weights, value(behaviours))
        mixed = mixed + jnp.einsum("bhp,bphe->bphe", own, value(slots))
        return nn.DenseGeneral(slots.shape[-1], axis=(-2, -1), dtype=dtype, name="mix")(mixed)


class TargetAttention(nn.Module):
    """h_l = sum_j a_j x_j with a_j from the activation unit FFN([x_j, x_j - h, x_j * h, h]) (20, 21), for P queries h.

    The unit's first layer is linear, so its parts that do not pair x_j with h are applied once instead of per pair.
    """

    hidden: int
    lag_buckets: int  # 0: no lags
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B J D"],
        h: Float[Array, "B P D"],
        mask: Bool[Array, "B P J"],
        lag: Int[Array, "B P J"] | None,
    ) -> Float[Array, "B P D"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1)), (4, x.shape[-1], self.hidden))
        bias = self.param("bias", nn.initializers.zeros, (self.hidden,))
        x, h, kernel, bias = (a.astype(self.dtype) for a in (x, h, kernel, bias))
        alone, difference, product, query = kernel
        # Hidden units lead, behaviours stay the fast axis: with four units that is a third quicker than units last.
        unit = jnp.einsum("bpd,de,bjd->ebpj", h, product, x)
        unit += jnp.einsum("bjd,de->ebj", x, alone + difference)[:, :, None]
        unit += (jnp.einsum("bpd,de->ebp", h, query - difference) + bias[:, None, None])[..., None]
        if self.lag_buckets:
            by_lag = self.param("lag", nn.initializers.normal(self.hidden**-0.5), (self.lag_buckets, self.hidden))
            unit += by_lag.T.astype(self.dtype)[:, lag]
        score = self.param("score", nn.initializers.lecun_normal(), (self.hidden, 1))
        logits = _scores(nn.swish(unit), score[:, 0].astype(self.dtype))
        return jnp.einsum("bpj,bjd->bpd", masked_softmax(logits, mask).astype(self.dtype), x)


def _scores(unit: Float[Array, "E B P J"], score: Float[Array, " E"]) -> Float[Array, "B P J"]:
    """sum_e score_e unit_e; for CUDA as a sum: untuned, the product of a matrix so tall and a vector is slow there."""

    def product(unit: Array, score: Array) -> Array:
        return jnp.einsum("ebpj,e->bpj", unit, score)

    return jax.lax.platform_dependent(unit, score, cuda=_summed_scores, default=product)


def _summed_scores(unit: Array, score: Array) -> Array:
    return (unit * score[:, None, None, None]).sum(axis=0)
