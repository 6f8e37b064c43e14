"""DiffuRec (Li et al. 2023) as a model of its own: the generated next item is the user vector.

A transformer reads behaviours into which the noised next items are mixed, and estimates what they are by cross-entropy
against the catalogue. Here at every position of the window, with a causal mask, to each behaviour its next item: the
published model mixes the one that is sought into all. Before the last behaviour the next items are known, and stand
noised in their places as in training. The user vector is the item in the units in which it is noised: in those of
the table cross-entropy would have to make it tens of times its size. As the slot of T2Diff: `generators.DiffuRec`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax import rng
from t2diff_jax.config import DiffusionConfig
from t2diff_jax.diffusion.process import q_sample
from t2diff_jax.diffusion.samplers import Known
from t2diff_jax.models.drift import (
    drift_scale,
    initial_stats,
    noise_per_user,
    reverse,
    schedule_of,
    update_drift_scale,
)
from t2diff_jax.models.objective import next_items, step_items
from t2diff_jax.models.sequential import Sequential, SequentialNet
from t2diff_jax.nn.denoiser import WindowDenoiser
from t2diff_jax.types import Batch, Catalogue, Variables


class DiffuRecNet(SequentialNet):
    """The approximator; `diffusion` says how far the step embedding and the mixing go."""

    diffusion: DiffusionConfig

    def make_encoder(self) -> nn.Module:
        """See `estimate`."""
        m, d = self.model, self.diffusion
        rotary, dtype = m.positions == "rotary", jnp.dtype(m.dtype)
        size = m.dim, m.layers, m.heads, m.hidden
        return WindowDenoiser(*size, m.dropout, rotary, d.step_dim, d.mixing, mapped=False, dtype=dtype)

    def estimate(
        self, z: jax.Array, r: jax.Array, x: jax.Array, share: jax.Array, batch: Batch, *, deterministic: bool
    ) -> jax.Array:
        """zhat_0 [B, L, D] of z_r [B, L, D], r [B or 1, L or 1]; x: e(i) of the behaviours."""
        return self.encoder(z, r, self.item_norm(x), batch["history"] > 0, share, deterministic=deterministic)

    def __call__(self, catalogue: Catalogue, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Touches every parameter, for `init`."""
        x = self.embed(batch["history"], catalogue)
        z = self.estimate(x, jnp.ones((1, 1), jnp.int32), x, x, batch, deterministic=True)
        return self.user_of_states(z, x, batch, deterministic=True), self.score_vectors(x, batch["history"])


@dataclasses.dataclass(frozen=True)
class DiffuRec(Sequential):
    """The retriever: see `types.Retriever`. Its statistics are the scale of item vectors, at which these are noised."""

    diffusion: DiffusionConfig

    @property
    def net(self) -> DiffuRecNet:
        """The module."""
        return DiffuRecNet(self.model, self.sizes, self.diffusion)

    def init(self, key: jax.Array, catalogue: Catalogue, batch: Batch) -> Variables:
        """{"params", "stats"}."""
        return {**super().init(key, catalogue, batch), "stats": initial_stats()}

    def encode_user(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The vector after the last behaviour, [B, 1, U]; noise is named by (key, user, position)."""
        params, scale = {"params": variables["params"]}, drift_scale(variables["stats"])
        x = self.net.apply(params, batch["history"], catalogue, method="embed")
        noise = noise_per_user(rng.per_user(key, batch["user"], batch["position"]), jnp.int32(0), x.shape)
        following = jnp.concatenate([x[:, 1:], x[:, :1]], axis=1) / scale
        behind = jnp.arange(x.shape[1])[None, :, None] < x.shape[1] - 1

        def estimate(z: jax.Array, r: jax.Array) -> jax.Array:
            # The streams up to T + 2 are the sampler's.
            share = noise(self.diffusion.steps + 2 + r[0])
            return self.net.apply(params, z, r[:, None], x, share, batch, deterministic=True, method="estimate")

        z = reverse(self.diffusion, estimate, noise, Known(behind, following))
        users = self.net.apply(params, z, x, batch, deterministic=True, method="user_of_states")[:, -1]
        return users, jnp.ones(users.shape[:2], bool)

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """Cross-entropy of the estimate of what follows every behaviour, from it noised to r ~ U{1..T}."""
        key_r, key_noise, key_share, key_dropout = jax.random.split(key, 4)
        params, history = {"params": variables["params"]}, batch["history"]
        items, (targets, weights) = step_items(self.net, params, catalogue, self.loss_config, batch), next_items(batch)
        x, truth = items.lookup(history), jax.lax.stop_gradient(items.lookup(targets))
        args = history > 0, batch["weight"], self.diffusion.scale_decay
        stats = update_drift_scale(variables["stats"], truth, *args)
        scale = drift_scale(stats)
        r = jax.random.randint(key_r, history.shape, 1, self.diffusion.steps + 1)
        z_r = q_sample(schedule_of(self.diffusion), truth / scale, r, jax.random.normal(key_noise, truth.shape))
        share = jax.random.normal(key_share, truth.shape)
        how = dict(deterministic=False, rngs={"dropout": key_dropout})
        z = self.net.apply(params, z_r, r, x, share, batch, **how, method="estimate")
        users = self.net.apply(params, z, x, batch, **how, method="user_of_states")
        loss = items.cross_entropy(users, targets, weights)
        return loss, ({"loss_tower": loss}, stats)
