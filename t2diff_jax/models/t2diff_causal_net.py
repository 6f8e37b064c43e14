"""The network of T2Diff at every position: its learned parts, each a method that the retriever calls."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.config import DiffusionConfig, ModelConfig
from t2diff_jax.models.objective import item_embedding
from t2diff_jax.models.visible import past_and_session, seconds_to_request
from t2diff_jax.nn.attention import SlotAttention, TargetAttention, TransformerEncoder, lag_bucket
from t2diff_jax.nn.denoiser import Denoiser, WindowDenoiser
from t2diff_jax.nn.embeddings import BehaviourDropout, UserFeatures
from t2diff_jax.nn.sketch import HistorySketch
from t2diff_jax.nn.towers import ItemTower
from t2diff_jax.nn.unet import UNet
from t2diff_jax.types import LAG_BUCKETS, Batch, Catalogue, Sizes

READS_STATES = ("diffusion", "regressor", "vae", "gan")  # slots whose generator is told of the window by the U-Net


class T2DiffCausalNet(nn.Module):
    """The learned parts: item embedding, causal encoder and estimator, mixed attention, item tower."""

    model: ModelConfig
    diffusion: DiffusionConfig
    sizes: Sizes

    def setup(self) -> None:
        m, dtype, rotary = self.model, jnp.dtype(self.model.dtype), self.model.positions == "rotary"
        self.items = item_embedding(m, self.sizes)
        self.item_tower = ItemTower(m.item_tower, m.dim)
        self.behaviour_dropout = BehaviourDropout(m.behaviour_dropout, m.init_sd)
        # Item vectors are small beside the states of a transformer, which would drown behaviours and slots.
        self.item_norm = nn.LayerNorm(dtype=dtype)
        self.encoder = TransformerEncoder(m.layers, m.heads, m.hidden, m.dropout, rotary, dtype)
        self.session = SlotAttention(m.heads, m.hidden, m.dropout, rotary, dtype)
        self.target_attention = TargetAttention(m.activation_hidden, LAG_BUCKETS if self.sizes.lags else 0, dtype)
        self.user_hidden = nn.Dense(m.hidden, dtype=dtype)
        self.user_out = nn.Dense(m.dim, dtype=jnp.float32)
        self.user_dropout = nn.Dropout(m.dropout)
        # Without it user vectors grow with training, and with them how sure the model is of what it has seen.
        self.user_norm = nn.LayerNorm(dtype=jnp.float32)
        if m.sketch_dim:
            self.sketch = HistorySketch(self.sizes.rows, m.sketch_dim, m.sketch_dropout)
        if self.sizes.user_features:
            self.users = UserFeatures(self.sizes.user_features, m.user_feature_dim, m.init_sd)
        if m.slot == "learned":
            self.learned = self.param("learned", nn.initializers.normal(1.0), (self.diffusion.samples, m.dim))
        if m.slot != "empty":
            # A generated item starts from the last behaviour: without dropout the tower learns pairs of items by heart.
            self.slot_dropout = nn.Dropout(m.dropout)
            self.slot_in = nn.Dense(m.dim, dtype=dtype)
        d = self.diffusion

        def head(features: int) -> Denoiser:
            return Denoiser(features, d.head_hidden, d.head_blocks, d.step_dim, dtype)

        if m.slot in READS_STATES:
            self.drift_encoder = UNet(d.filters, m.dim, 0, True, dtype)
            self.drift_dropout = nn.Dropout(m.dropout)
            self.denoiser = head(m.dim)
        if m.slot == "vae":
            self.recogniser = head(2 * m.dim)
        if m.slot == "gan":
            self.critic = head(1)
        if m.slot == "diffurec":
            size = m.dim, m.layers, m.heads, m.hidden
            self.denoiser = WindowDenoiser(*size, 0.0, rotary, d.step_dim, d.mixing, mapped=True, dtype=dtype)

    def item_table(self, catalogue: Catalogue) -> jax.Array:
        """e(i) of every row, [R, D]."""
        return self.items.table(catalogue)

    def embed(self, ids: jax.Array, catalogue: Catalogue) -> jax.Array:
        """e(i), [..., D]."""
        return self.items(ids, catalogue)

    def hide(self, x: jax.Array, history: jax.Array, *, deterministic: bool) -> jax.Array:
        """e(i) of the behaviours as training shows them, [B, L, D]."""
        return self.behaviour_dropout(x, history, deterministic=deterministic)

    def score_vectors(self, e: jax.Array, ids: jax.Array | None) -> jax.Array:
        """The item tower: scored vectors [..., U] of e(i) [..., D] of the items `ids` (None: of all rows)."""
        if not self.model.sketch_dim:
            return self.item_tower(e)
        return jnp.concatenate([self.item_tower(e), self.sketch.signatures(ids)], axis=-1)

    def encode(self, x: jax.Array, history: jax.Array, *, deterministic: bool, last: int = 0) -> jax.Array:
        """States of the causal transformer, [B, L, D], or of the `last` places alone if positive."""
        valid = history > 0
        causal = jnp.tri(valid.shape[1], dtype=bool)[None] & valid[:, None, :]
        return self.encoder(self.item_norm(x), causal, deterministic=deterministic, last=last)

    def condition(self, x: jax.Array, states: jax.Array, mask: jax.Array, *, deterministic: bool) -> jax.Array:
        """All that the estimator knows at the places of the states, [B, S, D]: what does not depend on r.

        Dropout acts on what enters and leaves the U-Net.

        x: behaviours [B, L, D] in units of the drift's scale; states: of the last S places [B, S, D].
        """
        known = jnp.pad((x[:, 1:] - x[:, :-1]) * mask[:, :-1, None], ((0, 0), (1, 0), (0, 0)))
        x, known, mask = (a[:, -states.shape[1] :] for a in (x, known, mask))
        inputs = jnp.concatenate([x, states.astype(x.dtype)], axis=-1)

        def drop(a: jax.Array) -> jax.Array:
            return self.drift_dropout(a, deterministic=deterministic)

        known, prepared = drop(known), self.drift_encoder.prepare(drop(inputs), mask)
        return drop(self.drift_encoder(known, None, prepared, mask))

    def denoise(self, z: jax.Array, r: jax.Array, condition: jax.Array) -> jax.Array:
        """zhat_0 of P positions, [B, P, D]; r [1 or B, 1 or P]."""
        return self.denoiser(z, r, condition)

    def learned_slots(self) -> jax.Array:
        """Slot learned: the M vectors, [M, D]."""
        return self.learned

    def recognise(self, z0: jax.Array, r: jax.Array, condition: jax.Array) -> jax.Array:
        """Slot vae: mean and log variance of the latent that stands for z_0, [B, P, 2 D]."""
        return self.recogniser(z0, r, condition)

    def judge(self, z0: jax.Array, r: jax.Array, condition: jax.Array) -> jax.Array:
        """Slot gan: log odds that z_0 is the truth, [B, P, 1]."""
        return self.critic(z0, r, condition)

    def denoise_window(self, z: jax.Array, r: jax.Array, x: jax.Array, mask: jax.Array, share: jax.Array) -> jax.Array:
        """Slot diffurec: see `nn.denoiser.WindowDenoiser`."""
        return self.denoiser(z, r, x, mask, share, deterministic=True)

    def user(
        self, x: jax.Array, states: jax.Array, slots: jax.Array | None, batch: Batch, *, last: bool, deterministic: bool
    ) -> jax.Array:
        """Mixed attention: user vectors [B, P, U] after every behaviour, P = L, or after the last one, P = 1.

        x: [B, L, D]; states: [B, L, D], for P = 1 also those of the session alone; slots: xhat_{p+1} [B, P, D], None
        for mixed attention alone.
        """

        def drop(a: jax.Array) -> jax.Array:
            return self.user_dropout(a, deterministic=deterministic)

        first = x.shape[1] - 1 if last else 0
        query = states[:, -1:] if last else states
        if slots is not None:
            # Without a behaviour there is nothing to generate from.
            slots = self.slot_dropout(self.item_norm(slots), deterministic=deterministic)
            query = query + self.slot_in(slots * (batch["history"][:, first:] > 0)[..., None])
        past, session = past_and_session(self.model, batch, first)
        h_s = self.session(query, states, session[..., -states.shape[1] :], deterministic=deterministic)
        lag = lag_bucket(seconds_to_request(batch, first)) if self.sizes.lags else None
        h_l = self.target_attention(drop(self.item_norm(x)), h_s, past, lag)
        parts = [h_l, h_s]
        if self.sizes.user_features:
            features = self.users(batch["user_features"])[:, None]
            parts.append(jnp.broadcast_to(features, (*h_s.shape[:2], features.shape[-1])).astype(h_s.dtype))
        hidden = nn.gelu(self.user_hidden(jnp.concatenate(parts, axis=-1)))
        users = self.user_norm(h_s.astype(jnp.float32) + drop(self.user_out(hidden)))
        users = self.model.user_scale * users
        if not self.model.sketch_dim:
            return users
        args = users, self.item_tower(x), batch["history"], past
        return jnp.concatenate([users, self.sketch(*args, deterministic=deterministic)], axis=-1)

    def __call__(self, catalogue: Catalogue, batch: Batch) -> jax.Array:
        """Touches every parameter, for `init`."""
        x, mask = self.embed(batch["history"], catalogue), batch["history"] > 0
        x = self.hide(x, batch["history"], deterministic=True)
        states, slots = self.encode(x, batch["history"], deterministic=True), None
        if self.model.slot != "empty":
            slots = self._touch_generator(x, states, mask)
        users = self.user(x, states, slots, batch, last=False, deterministic=True)
        return users * self.score_vectors(x, batch["history"])

    def _touch_generator(self, x: jax.Array, states: jax.Array, mask: jax.Array) -> jax.Array:
        r = jnp.ones((1, 1), jnp.int32)
        if self.model.slot in ("learned", "oracle"):
            return x
        if self.model.slot == "diffurec":
            return self.denoise_window(x, r, x, mask, x)
        condition = self.condition(x, states, mask, deterministic=True)
        slots = self.denoise(x, r, condition)
        if self.model.slot == "vae":
            slots = slots + self.recognise(x, r, condition)[..., : x.shape[-1]]
        if self.model.slot == "gan":
            slots = slots + self.judge(x, r, condition)
        return slots
