"""T2Diff at every position: the window's behaviours are all targets of one pass, as in a language model.

What the published form does once per window, for its last position, happens here at every position p, from behaviours
up to p alone: a causal U-Net over the drift generates the next item, a slot that attends to the current session makes
h_s (19), target attention over the whole history makes h_l (20, 21), and both make the user vector (22). The estimator
is conditioned on the states of a causal transformer beside the raw behaviours. A step learns from L targets a window.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax import rng
from t2diff_jax.config import DiffusionConfig, LossConfig, ModelConfig
from t2diff_jax.diffusion.samplers import Noise
from t2diff_jax.losses import diffusion_loss, weighted_mean
from t2diff_jax.models.drift import (
    Generated,
    cosine,
    drift_scale,
    initial_stats,
    noise_per_user,
    noised_drift,
    reverse,
    training_noise,
)
from t2diff_jax.models.objective import item_embedding, next_items, step_items
from t2diff_jax.nn.attention import SlotAttention, TargetAttention, TransformerEncoder, lag_bucket
from t2diff_jax.nn.embeddings import UserFeatures
from t2diff_jax.nn.sketch import HistorySketch
from t2diff_jax.nn.towers import ItemTower
from t2diff_jax.nn.unet import UNet
from t2diff_jax.types import LAG_BUCKETS, Batch, Catalogue, Sizes, Variables


class T2DiffCausalNet(nn.Module):
    """The learned parts: item embedding, causal encoder and estimator, mixed attention, item tower."""

    model: ModelConfig
    diffusion: DiffusionConfig
    sizes: Sizes

    def setup(self) -> None:
        m, dtype, rotary = self.model, jnp.dtype(self.model.dtype), self.model.positions == "rotary"
        self.items = item_embedding(m, self.sizes)
        self.item_tower = ItemTower(m.item_tower, m.dim)
        self.encoder = TransformerEncoder(m.layers, m.heads, m.hidden, m.dropout, rotary, dtype)
        self.session = SlotAttention(m.heads, m.hidden, m.dropout, rotary, dtype)
        self.target_attention = TargetAttention(m.activation_hidden, LAG_BUCKETS if self.sizes.lags else 0, dtype)
        self.user_hidden = nn.Dense(m.hidden, dtype=dtype)
        self.user_out = nn.Dense(m.dim, dtype=jnp.float32)
        if m.sketch_dim:
            self.sketch = HistorySketch(self.sizes.rows, m.sketch_dim)
        if self.sizes.user_features:
            self.users = UserFeatures(self.sizes.user_features, m.user_feature_dim, m.init_sd)
        if m.slot == "diffusion":
            self.slot_in = nn.Dense(m.dim, dtype=dtype)
            self.denoiser = UNet(self.diffusion.filters, m.dim, self.diffusion.step_dim, True, dtype)

    def item_table(self, catalogue: Catalogue) -> jax.Array:
        """e(i) of every row, [R, D]."""
        return self.items.table(catalogue)

    def embed(self, ids: jax.Array, catalogue: Catalogue) -> jax.Array:
        """e(i), [..., D]."""
        return self.items(ids, catalogue)

    def score_vectors(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """The item tower: scored vectors [..., U] of e(i) [..., D] of the items `ids` (None: of all rows)."""
        if not self.model.sketch_dim:
            return self.item_tower(e)
        return jnp.concatenate([self.item_tower(e), self.sketch.signatures(ids)], axis=-1)

    def encode(self, x: jax.Array, history: jax.Array, *, deterministic: bool) -> jax.Array:
        """States of the causal transformer, [B, L, D]."""
        valid = history > 0
        causal = jnp.tri(valid.shape[1], dtype=bool)[None] & valid[:, None, :]
        return self.encoder(x, causal, deterministic=deterministic)

    def prepare(self, condition: jax.Array, mask: jax.Array) -> jax.Array:
        """The estimator's work that does not depend on r."""
        return self.denoiser.prepare(condition, mask)

    def estimate(self, z: jax.Array, r: jax.Array, prepared: jax.Array, mask: jax.Array) -> jax.Array:
        """zhat_0 at every position, [B, L, D]."""
        return self.denoiser(z, r, prepared, mask)

    def user(
        self, x: jax.Array, states: jax.Array, slots: jax.Array | None, batch: Batch, *, last: bool, deterministic: bool
    ) -> jax.Array:
        """Mixed attention: user vectors [B, P, U] after every behaviour, P = L, or after the last one, P = 1.

        x, states: [B, L, D]; slots: xhat_{p+1} [B, L, D], None for mixed attention alone.
        """
        first = x.shape[1] - 1 if last else 0
        query = states[:, first:]
        if slots is not None:
            query = query + self.slot_in(slots[:, first:])
        past, session = self._visible(batch, first)
        h_s = self.session(query, states, session, deterministic=deterministic)
        lag = self._lags(batch["age"], first) if self.sizes.lags else None
        h_l = self.target_attention(x, h_s, past, lag)
        parts = [h_l, h_s]
        if self.sizes.user_features:
            features = self.users(batch["user_features"])[:, None]
            parts.append(jnp.broadcast_to(features, (*h_s.shape[:2], features.shape[-1])).astype(h_s.dtype))
        hidden = nn.gelu(self.user_hidden(jnp.concatenate(parts, axis=-1)))
        users = h_s.astype(jnp.float32) + self.user_out(hidden)
        if not self.model.sketch_dim:
            return users
        return jnp.concatenate([users, self.sketch(users, self.item_tower(x), batch["history"], past)], axis=-1)

    @nn.nowrap
    def _visible(self, batch: Batch, first: int) -> tuple[jax.Array, jax.Array]:
        """Behaviours that positions first.. may see, [B, P, L]: all up to their own; those of the session they end."""
        place, gap = jnp.arange(batch["history"].shape[1]), self.model.session_gap
        distance = place[first:, None] - place[None]
        past = (distance >= 0)[None] & (batch["history"] > 0)[:, None]
        session = past & (distance < self.model.session_length)[None]
        if gap:
            age = batch["age"]
            breaks = jnp.pad(age[:, :-1] - age[:, 1:] > gap, ((0, 0), (1, 0)))
            part = jnp.cumsum(breaks, axis=1)
            session = session & (part[:, first:, None] == part[:, None])
        return past, session

    @nn.nowrap
    def _lags(self, age: jax.Array, first: int) -> jax.Array:
        """Lag buckets [B, P, L] from each behaviour to the request of positions first..: the time of what came next."""
        request = jnp.pad(age[:, 1:], ((0, 0), (0, 1)))[:, first:]
        return lag_bucket(age[:, None] - request[..., None])

    def __call__(self, catalogue: Catalogue, batch: Batch) -> jax.Array:
        """Touches every parameter, for `init`."""
        x, mask = self.embed(batch["history"], catalogue), batch["history"] > 0
        states, slots = self.encode(x, batch["history"], deterministic=True), None
        if self.model.slot == "diffusion":
            r = jnp.ones((x.shape[0],), jnp.int32)
            slots = self.estimate(x, r, self.prepare(jnp.concatenate([x, states], axis=-1), mask), mask)
        users = self.user(x, states, slots, batch, last=False, deterministic=True)
        return users * self.score_vectors(x, batch["history"])


@dataclasses.dataclass(frozen=True)
class T2DiffCausal:
    """The retriever: see `types.Retriever`. With `model.slot = "empty"` it is mixed attention alone."""

    model: ModelConfig
    diffusion: DiffusionConfig
    loss_config: LossConfig
    sizes: Sizes

    @property
    def net(self) -> T2DiffCausalNet:
        """The module; a property, so that the retriever stays a plain hashable record."""
        return T2DiffCausalNet(self.model, self.diffusion, self.sizes)

    def init(self, key: jax.Array, catalogue: Catalogue, batch: Batch) -> Variables:
        """{"params", "stats"}; the statistics are those of the drift's scale."""
        return {"params": self.net.init(key, catalogue, batch)["params"], "stats": initial_stats()}

    def encode_items(self, variables: Variables, catalogue: Catalogue) -> jax.Array:
        """Scored vectors of every row, [R, U]."""
        table = self._apply(variables, "item_table", catalogue)
        return self._apply(variables, "score_vectors", table, None)

    def encode_user(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """User vectors [B, M, U] from M drawn intents; noise is named by (key, user, position, intent)."""
        history = batch["history"]
        x = self._apply(variables, "embed", history, catalogue)
        states = self._apply(variables, "encode", x, history, deterministic=True)
        args = dict(last=True, deterministic=True)
        if self.model.slot == "empty":
            users = self._apply(variables, "user", x, states, None, batch, **args)
            return users, jnp.ones(users.shape[:2], bool)
        keys = rng.per_user(key, batch["user"], batch["position"])

        def one_intent(m: jax.Array) -> jax.Array:
            slots = self.generate(variables, x, states, history > 0, noise_per_user(keys, m, x.shape))
            return self._apply(variables, "user", x, states, slots, batch, **args)[:, 0]

        users = jax.vmap(one_intent, out_axes=1)(jnp.arange(self.diffusion.samples))
        return users, jnp.ones(users.shape[:2], bool)

    def generate(
        self, variables: Variables, x: jax.Array, states: jax.Array, mask: jax.Array, noise: Noise
    ) -> jax.Array:
        """xhat_{p+1} = x_p + zhat_0[p] at every position by the reverse process from pure noise, [B, L, D].

        Every position is generated as if it were the last, so none is known beforehand (`clamp_known` has no effect).
        """
        x, states = jax.lax.stop_gradient((x, states))
        scale = drift_scale(variables["stats"])
        prepared = self._prepare(variables, x / scale, states, mask)

        def estimate(z: jax.Array, r: jax.Array) -> jax.Array:
            return self._apply(variables, "estimate", z, r, prepared, mask)

        return x + scale * reverse(self.diffusion, estimate, noise, None)

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """L = L_TOWER + lambda L_KL (23-25), both over every valid position; the table learns from L_TOWER only."""
        key_items, key_diffusion, key_encoder, key_user = jax.random.split(key, 4)
        items = step_items(self.net, {"params": variables["params"]}, catalogue, self.loss_config, key_items)
        history, weight = batch["history"], batch["weight"]
        x, target = items.lookup(history), items.lookup(batch["target"])
        states = self._apply(variables, "encode", x, history, deterministic=False, rngs={"dropout": key_encoder})
        slots, stats, loss_kl = None, variables["stats"], jnp.zeros(())
        if self.model.slot == "diffusion":
            generated = self.diffuse(variables, x, states, target, batch, key_diffusion)
            slots, stats = generated.slots, generated.stats
            loss_kl = weighted_mean(generated.loss, weight)
        users = self._apply(
            variables, "user", x, states, slots, batch, last=False, deterministic=False, rngs={"dropout": key_user}
        )
        targets, weights = next_items(batch)
        loss_tower = items.cross_entropy(users, targets, weights, history)
        metrics = {"loss_tower": loss_tower}
        if slots is not None:
            metrics |= {"loss_diffusion": loss_kl, "drift_scale": drift_scale(stats)}
            metrics |= {"slot_cosine": weighted_mean(cosine(slots[:, -1], target), weight)}
        return loss_tower + self.diffusion.weight * loss_kl, (metrics, stats)

    def diffuse(
        self, variables: Variables, x: jax.Array, states: jax.Array, target: jax.Array, batch: Batch, key: jax.Array
    ) -> Generated:
        """One training step of the diffusion module (algorithm 1); everything that enters or leaves it is detached."""
        x, states, target = jax.lax.stop_gradient((x, states, target))
        mask = batch["history"] > 0
        key_draw, key_slot = jax.random.split(key)
        draw = noised_drift(self.diffusion, variables["stats"], x, target, batch, key_draw)
        variables, scale = {**variables, "stats": draw.stats}, drift_scale(draw.stats)
        prepared = self._prepare(variables, x / scale, states, mask)
        estimate = self._apply(variables, "estimate", draw.z_r, draw.r, prepared, mask)
        if self.diffusion.slot_training == "denoised":
            slots = x + scale * estimate
        else:
            frozen = jax.lax.stop_gradient(variables)
            slots = self.generate(frozen, x, states, mask, training_noise(key_slot, x.shape))
        return Generated(jax.lax.stop_gradient(slots), diffusion_loss(draw.z0, estimate, mask), draw.stats)

    def _prepare(self, variables: Variables, x: jax.Array, states: jax.Array, mask: jax.Array) -> jax.Array:
        condition = jnp.concatenate([x, states.astype(x.dtype)], axis=-1)
        return self._apply(variables, "prepare", condition, mask)

    def _apply(self, variables: Variables, method: str, *args: Any, **kwargs: Any) -> jax.Array:
        return self.net.apply({"params": variables["params"]}, *args, method=method, **kwargs)
