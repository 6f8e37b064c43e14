"""T2Diff: a user tower that generates the next item by diffusing interest drift (Wang et al., arXiv 2502.20687).

Equation numbers are the paper's. One target per window, as published; `t2diff_causal.py` trains at every position.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax import rng
from t2diff_jax.config import DiffusionConfig, LossConfig, ModelConfig
from t2diff_jax.diffusion.process import q_sample
from t2diff_jax.diffusion.samplers import Known, Noise
from t2diff_jax.losses import diffusion_loss, weighted_mean
from t2diff_jax.models.drift import (
    Generated,
    clean,
    cosine,
    drift_scale,
    generated_item,
    initial_stats,
    noise_per_user,
    noised_drift,
    reverse,
    schedule_of,
    training_noise,
)
from t2diff_jax.models.objective import item_embedding, step_items
from t2diff_jax.nn.attention import lag_bucket
from t2diff_jax.nn.embeddings import UserFeatures
from t2diff_jax.nn.towers import ItemTower, MixedAttention
from t2diff_jax.nn.unet import UNet
from t2diff_jax.types import LAG_BUCKETS, Batch, Catalogue, Sizes, Variables


class T2DiffNet(nn.Module):
    """The learned parts: item embedding, estimator, mixed attention, item tower."""

    model: ModelConfig
    diffusion: DiffusionConfig
    sizes: Sizes

    def setup(self) -> None:
        m, dtype = self.model, jnp.dtype(self.model.dtype)
        features = len(self.sizes.user_features) * m.user_feature_dim
        output_dim = m.dim if m.user_tower == "ffn" else 2 * m.dim + features
        self.items = item_embedding(m, self.sizes)
        self.item_tower = ItemTower(m.item_tower, output_dim)
        self.mixed = MixedAttention(
            m.layers, m.heads, m.hidden, m.dropout, m.positions == "rotary", m.attend_self, m.activation_hidden,
            LAG_BUCKETS if self.sizes.lags else 0, m.user_tower, output_dim, dtype,
        )  # fmt: skip
        if self.sizes.user_features:
            self.users = UserFeatures(self.sizes.user_features, m.user_feature_dim, m.init_sd)
        if m.slot == "diffusion":
            self.denoiser = UNet(self.diffusion.filters, m.dim, self.diffusion.step_dim, False, dtype)

    def item_table(self, catalogue: Catalogue) -> jax.Array:
        """e(i) of every row, [R, D]."""
        return self.items.table(catalogue)

    def embed(self, ids: jax.Array, catalogue: Catalogue) -> jax.Array:
        """e(i), [..., D]."""
        return self.items(ids, catalogue)

    def score_vectors(self, e: jax.Array, _ids: jax.Array | None) -> jax.Array:
        """The item tower: scored vectors [..., U] of e(i) [..., D]."""
        return self.item_tower(e)

    def prepare(self, condition: jax.Array, mask: jax.Array) -> jax.Array:
        """The estimator's work that does not depend on r."""
        return self.denoiser.prepare(condition, mask)

    def estimate(self, z: jax.Array, r: jax.Array, prepared: jax.Array, mask: jax.Array) -> jax.Array:
        """zhat_0 = mu_theta([z_r ; X], r), [B, L, D]."""
        return self.denoiser(z, r, prepared, mask)

    def user(self, x: jax.Array, slot: jax.Array | None, batch: Batch, *, deterministic: bool) -> jax.Array:
        """Mixed attention: user vectors [B, U] from behaviours [B, L, D] and the generated item [B, D]."""
        k, length = self.model.session_length, x.shape[1]
        valid = batch["history"] > 0
        in_session = valid & (jnp.arange(length)[None] >= length - batch["session_length"][:, None])
        # Where the session is always the last k, no other column can hold history: a shorter array says so.
        columns = length if self.model.session_gap else length - k
        lag = lag_bucket(batch["age"][:, :columns]) if self.sizes.lags else None
        features = self.users(batch["user_features"]) if self.sizes.user_features else None
        return self.mixed(
            x[:, length - k :], in_session[:, length - k :], x[:, :columns], (valid & ~in_session)[:, :columns],
            slot, lag, features, deterministic=deterministic,
        )  # fmt: skip

    def __call__(self, catalogue: Catalogue, batch: Batch) -> jax.Array:
        """Touches every parameter, for `init`."""
        x, mask = self.embed(batch["history"], catalogue), batch["history"] > 0
        slot = None
        if self.model.slot == "diffusion":
            r = jnp.ones((x.shape[0],), jnp.int32)
            slot = self.estimate(x, r, self.prepare(x, mask), mask)[:, -1]
        return self.user(x, slot, batch, deterministic=True) * self.score_vectors(x[:, -1], None)


@dataclasses.dataclass(frozen=True)
class T2Diff:
    """The retriever: see `types.Retriever`. With `model.slot = "empty"` it is mixed attention alone."""

    model: ModelConfig
    diffusion: DiffusionConfig
    loss_config: LossConfig
    sizes: Sizes

    @property
    def net(self) -> T2DiffNet:
        """The module; a property, so that the retriever stays a plain hashable record."""
        return T2DiffNet(self.model, self.diffusion, self.sizes)

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
        x = self._apply(variables, "embed", batch["history"], catalogue)
        if self.model.slot == "empty":
            users = self._apply(variables, "user", x, None, batch, deterministic=True)[:, None]
            return users, jnp.ones(users.shape[:2], bool)
        slots = self._intents(variables, x, batch, key)
        users = jax.vmap(lambda s: self._apply(variables, "user", x, s, batch, deterministic=True), 1, 1)(slots)
        return users, jnp.ones(users.shape[:2], bool)

    def generate_items(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> jax.Array | None:
        """The generated next items xhat_{n+1} of every request, [B, M, D]; None where nothing is generated."""
        if self.model.slot == "empty":
            return None
        return self._intents(variables, self._apply(variables, "embed", batch["history"], catalogue), batch, key)

    def denoise_items(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array, r: jax.Array
    ) -> jax.Array | None:
        """xhat_{n+1} [B, D] by one call on the true drifts noised to step r; None where nothing is diffused."""
        if self.model.slot != "diffusion":
            return None
        mask, scale = batch["history"] > 0, drift_scale(variables["stats"])
        x, target = (self._apply(variables, "embed", batch[name], catalogue) for name in ("history", "target"))
        z0, r = clean(self.diffusion, x, target) / scale, r.reshape(1)
        noise = noise_per_user(rng.per_user(key, batch["user"], batch["position"]), jnp.int32(0), z0.shape)
        z_r = q_sample(schedule_of(self.diffusion), z0, r, noise(jnp.int32(0)))
        prepared = self._apply(variables, "prepare", x / scale, mask)
        estimate = self._apply(variables, "estimate", z_r, r, prepared, mask)
        return generated_item(self.diffusion, x[:, -1], scale * estimate[:, -1])

    def item_embeddings(self, variables: Variables, catalogue: Catalogue) -> jax.Array:
        """e(i) of every row, [R, D]: the space in which items are generated."""
        return self._apply(variables, "item_table", catalogue)

    def generate(self, variables: Variables, x: jax.Array, mask: jax.Array, noise: Noise) -> jax.Array:
        """xhat_{n+1} = x_n + zhat_0[n] by the reverse process from pure noise (algorithm 2), [B, D].

        x: [B, L, D] behaviours; mask: [B, L]; noise: see `samplers.Noise`.
        """
        x, scale = jax.lax.stop_gradient(x), drift_scale(variables["stats"])
        prepared = self._apply(variables, "prepare", x / scale, mask)

        def estimate(z: jax.Array, r: jax.Array) -> jax.Array:
            return self._apply(variables, "estimate", z, r, prepared, mask)

        known = None
        if self.diffusion.clamp_known:
            # What came next is known of every behaviour but the last.
            inner = mask & (jnp.arange(mask.shape[1])[None] < mask.shape[1] - 1)
            known = Known(inner[..., None], clean(self.diffusion, x, x[:, -1]) / scale)
        z = reverse(self.diffusion, estimate, noise, known)
        return generated_item(self.diffusion, x[:, -1], scale * z[:, -1])

    def _intents(self, variables: Variables, x: jax.Array, batch: Batch, key: jax.Array) -> jax.Array:
        keys = rng.per_user(key, batch["user"], batch["position"])

        def one(m: jax.Array) -> jax.Array:
            return self.generate(variables, x, batch["history"] > 0, noise_per_user(keys, m, x.shape))

        return jax.vmap(one, out_axes=1)(jnp.arange(self.diffusion.samples))

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """L = L_TOWER + lambda L_KL (23-25); the item table learns from L_TOWER only."""
        key_diffusion, key_dropout = jax.random.split(key)
        params = {"params": variables["params"]}
        items = step_items(self.net, params, catalogue, self.loss_config, batch)
        x, target = items.lookup(batch["history"]), items.lookup(batch["target"])
        slot, stats, weight = None, variables["stats"], batch["weight"]
        loss_kl = jnp.zeros(())
        if self.model.slot == "diffusion":
            slot, loss_kl, stats = self.diffuse(variables, x, target, batch, key_diffusion)
        users = self._apply(variables, "user", x, slot, batch, deterministic=False, rngs={"dropout": key_dropout})
        # A row that only fills the batch has the padding as target; any item in its place keeps it finite.
        targets = jnp.maximum(batch["target"], 1)[:, None]
        loss_tower = items.cross_entropy(users[:, None, None], targets, weight[:, None])
        metrics = {"loss_tower": loss_tower}
        if slot is not None:
            metrics |= {"loss_diffusion": loss_kl, "drift_scale": drift_scale(stats)}
            metrics |= {"slot_cosine": weighted_mean(cosine(slot, target), weight)}
        return loss_tower + self.diffusion.weight * loss_kl, (metrics, stats)

    def diffuse(self, variables: Variables, x: jax.Array, target: jax.Array, batch: Batch, key: jax.Array) -> Generated:
        """One training step of the diffusion module (algorithm 1); everything that enters or leaves it is detached."""
        x, target = jax.lax.stop_gradient((x, target))
        mask = batch["history"] > 0
        key_draw, key_slot = jax.random.split(key)
        draw = noised_drift(self.diffusion, variables["stats"], x, target, batch, key_draw)
        variables, scale = {**variables, "stats": draw.stats}, drift_scale(draw.stats)
        prepared = self._apply(variables, "prepare", x / scale, mask)
        estimate = self._apply(variables, "estimate", draw.z_r, draw.r, prepared, mask)
        if self.diffusion.slot_training == "denoised":
            slot = generated_item(self.diffusion, x[:, -1], scale * estimate[:, -1])
        else:
            slot = self.generate(jax.lax.stop_gradient(variables), x, mask, training_noise(key_slot, x.shape))
        loss = weighted_mean(diffusion_loss(draw.z0, estimate, mask), batch["weight"])
        return Generated(jax.lax.stop_gradient(slot), loss, draw.stats)

    def _apply(self, variables: Variables, method: str, *args: Any, **kwargs: Any) -> jax.Array:
        return self.net.apply({"params": variables["params"]}, *args, method=method, **kwargs)
