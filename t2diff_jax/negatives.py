"""Negatives of a sampled softmax: which items a step draws, and how often each is to be expected (logQ).

Some are drawn uniformly from the catalogue, some from the items of the step's own windows. How often the latter bring
an item is not known: it is estimated along the run, from how many draws lie between one of its draws and the next
(Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t2diff_jax import rng
from t2diff_jax.config import LossConfig
from t2diff_jax.types import Batch


class Frequencies(NamedTuple):
    """What is known of the draws from batches, by item.

    Attributes:
      draw_gap: float32 [R], running mean of the draws from one draw of the item to its next: 1 / its probability.
      draw_step: int32 [R], the step after which it was last counted; 0: never.
    """

    draw_gap: jax.Array
    draw_step: jax.Array


def initial_frequencies(n_rows: int, n_items: int) -> Frequencies:
    """Before the first draw every item is as likely."""
    return Frequencies(jnp.full(n_rows, float(n_items)), jnp.zeros(n_rows, jnp.int32))


def with_negatives(
    batch: Batch, frequencies: Frequencies | None, loss: LossConfig, n_items: int, *, seed: int, step: Int[Array, ""]
) -> tuple[Batch, Frequencies | None]:
    """The batch with its negatives, ids int32 [n] and log E[how often] float32 [n], and what their draws tell."""
    key = rng.at_step(rng.stream(seed, "negatives"), step)
    ids = [draw_uniform(key, loss.negatives, n_items)]
    if loss.batch_negatives:
        drawn = draw_from_batch(jax.random.fold_in(key, 1), loss.batch_negatives, batch)
        frequencies = counted(frequencies, drawn, step, loss.frequency_decay)
        ids.append(drawn)
    drawn = jnp.concatenate(ids)
    log_counts = log_expected_counts(drawn, frequencies, loss, n_items)
    return {**batch, "negatives": drawn, "log_counts": log_counts}, frequencies


def draw_uniform(key: jax.Array, count: int, n_items: int) -> Int[Array, " n"]:
    """Ids of items, uniform with replacement."""
    return jax.random.randint(key, (count,), 1, n_items + 1)


def draw_from_batch(key: jax.Array, count: int, batch: Batch) -> Int[Array, " n"]:
    """Ids of items, uniform with replacement over the behaviours and targets of the windows that count.

    0, which is no item, where there are none.
    """
    pool = jnp.concatenate([batch["history"], batch["target"][:, None]], axis=1)
    there = ((pool > 0) & (batch["weight"] > 0)[:, None]).reshape(-1)
    upto = jnp.cumsum(there)
    place = jnp.searchsorted(upto, 1 + jax.random.randint(key, (count,), 0, jnp.maximum(upto[-1], 1)))
    return jnp.where(upto[-1] > 0, pool.reshape(-1)[jnp.minimum(place, pool.size - 1)], 0)


def counted(frequencies: Frequencies, drawn: Int[Array, " n"], step: Int[Array, ""], decay: float) -> Frequencies:
    """The estimate after the draws of one step.

    An item drawn c times since draw t, up to draw t', had a mean gap of (t' - t) / c, which counts as c observations.
    """
    size = len(drawn)
    ids, counts = jnp.unique(drawn, size=size, fill_value=0, return_counts=True)
    # 0 is no item; an index past the end is dropped.
    ids = jnp.where((ids > 0) & (counts > 0), ids, len(frequencies.draw_gap))
    now = step + 1
    gap, last = (a.at[ids].get(mode="clip") for a in frequencies)
    observed = (now - last).astype(jnp.float32) * size / jnp.maximum(counts, 1)  # the draws are too many for an int32
    gap = gap + (1 - (1 - decay) ** counts) * (observed - gap)
    return Frequencies(
        frequencies.draw_gap.at[ids].set(gap, mode="drop"), frequencies.draw_step.at[ids].set(now, mode="drop")
    )


def log_expected_counts(
    ids: Int[Array, " n"], frequencies: Frequencies | None, loss: LossConfig, n_items: int
) -> Float[Array, " n"]:
    """log E[how often a step draws each item], whatever it was drawn from: log(m / N + b q) of m uniform, b others."""
    expected = jnp.full(ids.shape, loss.negatives / n_items)
    if loss.batch_negatives:
        expected += loss.batch_negatives / jnp.maximum(frequencies.draw_gap[ids], 1.0)
    return jnp.log(expected)
