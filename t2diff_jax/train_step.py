"""The training step: pure, one forward and one backward pass; compiled with shardings and donation at the edge."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from t2diff_jax import rng
from t2diff_jax.config import LossConfig
from t2diff_jax.negatives import with_negatives
from t2diff_jax.optim import global_norm
from t2diff_jax.sharding import batch_sharding, replicated, row_sharding
from t2diff_jax.touched_rows import on_touched_rows
from t2diff_jax.train_state import TrainState
from t2diff_jax.types import Batch, Catalogue, Retriever

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Catalogue, Batch], tuple[TrainState, Metrics]]


def train_step(
    state: TrainState,
    catalogue: Catalogue,
    batch: Batch,
    *,
    retriever: Retriever,
    tx: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
) -> tuple[TrainState, Metrics]:
    """One optimiser step on one batch: (new state, scalar metrics). Randomness comes from (seed, state.step)."""
    key = rng.at_step(rng.stream(seed, "train"), state.step)

    def objective(params: object) -> tuple[jax.Array, tuple[Metrics, object]]:
        return retriever.loss({"params": params, "stats": state.stats}, catalogue, batch, key)

    (loss, (metrics, stats)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        # Early on the average follows fast: it must not remember the random start.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, ema, 1 - decay)
    metrics = {"loss": loss, **metrics, "grad_norm": global_norm(gradient)}
    return TrainState(state.step + 1, params, opt_state, ema, stats, state.frequencies), metrics


def compile_step(
    mesh: Mesh,
    abstract: TrainState,
    *,
    retriever: Retriever,
    tx: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
    loss: LossConfig,
    lazy: bool,
) -> Step:
    """The jitted step: the state is donated and keeps its shardings, metrics are replicated.

    loss: says how many negatives are drawn, and from what.
    lazy: only rows of item tables that the batch names are learned (`touched_rows`).
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def learn(retriever: Retriever, *args: Any) -> tuple[TrainState, Metrics]:
        return train_step(*args, retriever=retriever, tx=tx, seed=seed, ema_decay=ema_decay)

    on_rows = on_touched_rows(learn, retriever) if lazy else functools.partial(learn, retriever)

    def step(state: TrainState, catalogue: Catalogue, batch: Batch) -> tuple[TrainState, Metrics]:
        if loss.sampled:
            args = batch, state.frequencies, loss, catalogue.n_items
            batch, frequencies = with_negatives(*args, seed=seed, step=state.step)
            state = state._replace(frequencies=frequencies)
        return on_rows(state, catalogue, batch)

    return jax.jit(
        step,
        in_shardings=(shardings, row_sharding(mesh), batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
