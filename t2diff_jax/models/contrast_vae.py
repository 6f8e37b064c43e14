"""ContrastVAE (Wang et al. 2022): a variational auto-encoder over the window in two views that are to agree.

A view is one draw of dropout and latent noise; the publication's learned noise of the second view is left out, and so
are its second encoder for the variance and its annealing. Its divergence is a sum over the width, up to a weight of .3;
here it is a mean, and `model.contrast_vae.kl_weight` so small that the latent is all but free: the loss is a bound only
in form. The contrast is per place, not of whole windows; serving reads the mean.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2diff_jax.losses import divergence_from_normal, weighted_mean
from t2diff_jax.models.objective import StepItems, next_items, step_items
from t2diff_jax.models.sequential import Sequential, SequentialNet
from t2diff_jax.models.visible import causal_mask
from t2diff_jax.nn.attention import TransformerEncoder
from t2diff_jax.nn.towers import unit
from t2diff_jax.types import Batch, Catalogue, Variables


class View(NamedTuple):
    """One draw: user vectors [B, L, 1, U]; the latent [B, L, D]; its mean and log variance [B, L, D]."""

    users: jax.Array
    latent: jax.Array
    mean: jax.Array
    log_variance: jax.Array


class ContrastVAENet(SequentialNet):
    """Encoder of `model.layers` causal blocks to a mean and a log variance of each place, decoder of one block."""

    def setup(self) -> None:
        super().setup()
        m, dtype = self.model, jnp.dtype(self.model.dtype)
        rotary = m.positions == "rotary"
        self.mean, self.log_variance = (nn.Dense(m.dim, dtype=jnp.float32) for _ in range(2))
        self.decoder = TransformerEncoder(1, m.heads, m.hidden, m.dropout, rotary, dtype)

    def make_encoder(self) -> nn.Module:
        """Takes a mask in place of what is valid."""
        m = self.model
        return TransformerEncoder(m.layers, m.heads, m.hidden, m.dropout, m.positions == "rotary", jnp.dtype(m.dtype))

    def encode(self, x: jax.Array, batch: Batch, *, deterministic: bool) -> jax.Array:
        """States [B, L, D] decoded from the means."""
        causal = causal_mask(batch)
        mean = self.mean(self.encoder(x, causal, deterministic=deterministic))
        return self.decoder(mean, causal, deterministic=deterministic)

    def encode_last(self, x: jax.Array, batch: Batch) -> jax.Array:
        """The last state, [B, 1, D]."""
        causal = causal_mask(batch)
        mean = self.mean(self.encoder(x, causal, deterministic=True))
        return self.decoder(mean, causal, deterministic=True, last=1)

    def view(self, x: jax.Array, batch: Batch) -> View:
        """One draw for training, with the random streams "dropout" and "latent"; x: e(i) of the behaviours."""
        x, causal = self.behaviour_dropout(x, batch["history"], deterministic=False), causal_mask(batch)
        h = self.encoder(self.item_norm(x), causal, deterministic=False)
        mean, log_variance = self.mean(h), jnp.clip(self.log_variance(h), -10, 10)
        noise = jax.random.normal(self.make_rng("latent"), mean.shape)
        latent = mean + jnp.exp(log_variance / 2) * noise
        states = self.decoder(latent, causal, deterministic=False)
        return View(self.user_of_states(states, x, batch, deterministic=False), latent, mean, log_variance)

    def __call__(self, catalogue: Catalogue, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Touches every parameter, for `init`."""
        self.log_variance(self.embed(batch["history"], catalogue))
        return super().__call__(catalogue, batch)


@dataclasses.dataclass(frozen=True)
class ContrastVAE(Sequential):
    """The retriever: see `types.Retriever`."""

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """Cross-entropy and weighed divergence of both views (their mean), and the contrast between them."""
        config, params = self.model.contrast_vae, {"params": variables["params"]}
        items = step_items(self.net, params, catalogue, self.loss_config, batch)
        x, (_, weights) = items.lookup(batch["history"]), next_items(batch)

        def draw(key: jax.Array) -> View:
            streams = dict(zip(("dropout", "latent"), jax.random.split(key), strict=True))
            return self.net.apply(params, x, batch, method="view", rngs=streams)

        views = [draw(key) for key in jax.random.split(key)]
        tower = sum(_cross_entropy(items, view, batch) for view in views) / 2
        divergences = [divergence_from_normal(view.mean, view.log_variance) for view in views]
        divergence = sum(weighted_mean(of_view, weights) for of_view in divergences) / 2
        contrast = weighted_mean(contrast_of(views[0].latent, views[1].latent, weights, config.temperature), weights)
        loss = tower + config.kl_weight * divergence + config.contrast_weight * contrast
        metrics = {"loss_tower": tower, "loss_divergence": divergence, "loss_contrast": contrast}
        return loss, (metrics, variables["stats"])


def _cross_entropy(items: StepItems, view: View, batch: Batch) -> jax.Array:
    return items.cross_entropy(view.users, *next_items(batch))


def contrast_of(a: jax.Array, b: jax.Array, weights: jax.Array, temperature: float) -> jax.Array:
    """-log share of its own other view among those at the same place of all windows, [B, L] (van den Oord et al. 2018).

    a, b: [B, L, D]; weights: [B, L], 0 for a place that does not count and is nobody's candidate. Cosines over
    `temperature`, averaged over the two directions.
    """
    a, b = unit(a), unit(b)
    logits = jnp.einsum("bld,cld->lbc", a, b) / temperature
    own = jnp.eye(len(a), dtype=bool)[None]
    candidate = own | (weights > 0).T[:, None, :]

    def one_way(logits: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jnp.where(candidate, logits, -jnp.inf), axis=-1)

    positive = jnp.einsum("lbb->lb", logits)
    return ((one_way(logits) + one_way(logits.transpose(0, 2, 1))) / 2 - positive).T
