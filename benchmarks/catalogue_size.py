"""Milliseconds of a training step by catalogue size, with lazy rows and dense, beside the smallest in the same run.

python benchmarks/catalogue_size.py [--items 100000 1000000 10000000] [--dense 100000 1000000] [--rounds 5]

Sampled softmax, windows of 50, ids drawn uniformly over the whole catalogue. Sizes take turns within a round.
`temporary_mb`: what the compiled step needs beside its arguments; `state_mb`: what it keeps (a table, its two moments).
"""

import argparse
import statistics

import jax
import numpy as np
from measure import emit, seconds

from configs import base
from t2diff_jax.config import Config
from t2diff_jax.config_values import from_mapping
from t2diff_jax.models import build_retriever
from t2diff_jax.optim import make_optimizer
from t2diff_jax.sharding import make_mesh, put_batch, put_catalogue
from t2diff_jax.train_state import abstract_state, make_state
from t2diff_jax.train_step import compile_step
from t2diff_jax.types import Catalogue, Sizes


def settings(batch: int, negatives: int) -> Config:
    """The base configuration with sampled negatives."""
    values = base.get_config()
    values.train.batch_size = batch
    values.loss.negatives = negatives
    return from_mapping(values)


class Sized:
    """A training step on a catalogue of so many items, ready to be called."""

    def __init__(self, config: Config, items: int, lazy: bool):
        window, size, draw = config.data.window, config.train.batch_size, np.random.default_rng(0)
        rows = -(-(items + 1) // 8) * 8
        mesh = make_mesh(config.mesh)
        self.catalogue = put_catalogue(mesh, Catalogue(np.zeros(rows, np.float32), None, None, items))
        sizes = Sizes(rows=rows, window=window, categories=0, content=0, user_features=(), lags=False, users=1000)
        batch = {
            "history": draw.integers(1, items + 1, (size, window), np.int32),
            "session_length": np.full(size, config.model.session_length, np.int32),
            "target": draw.integers(1, items + 1, size, np.int32),
            "weight": np.ones(size, np.float32),
            "user": np.arange(size, dtype=np.int32),
            "position": np.full(size, window, np.int32),
        }
        self.batch = put_batch(mesh, batch, size)
        recipe = dict(retriever=build_retriever(config, sizes), tx=make_optimizer(config.optim, config.train.steps))
        kept = dict(average=False, count_draws=config.loss.batch_negatives > 0)
        abstract = abstract_state(mesh, self.catalogue, self.batch, **recipe, **kept)
        self.state = make_state(0, abstract, self.catalogue, self.batch, **recipe, **kept)
        args = dict(seed=0, ema_decay=0.0, loss=config.loss, lazy=lazy)
        compiled = (
            compile_step(mesh, abstract, **recipe, **args).lower(self.state, self.catalogue, self.batch).compile()
        )
        self.step, self.temporary = compiled, compiled.memory_analysis().temp_size_in_bytes
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    def __call__(self) -> jax.Array:
        """One step."""
        self.state, metrics = self.step(self.state, self.catalogue, self.batch)
        return metrics["loss"]


def compare(config: Config, items: list[int], lazy: bool, rounds: int) -> None:
    """Times all sizes in turns and prints each."""
    steps = [Sized(config, n, lazy) for n in items]
    times = [[] for _ in items]
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            found.append(seconds(step, repeats=5)["median"])
    medians = [statistics.median(found) for found in times]
    for n, step, time in zip(items, steps, medians, strict=True):
        values = {"step_ms": 1000 * time, "ratio_to_smallest": time / medians[0]}
        values |= {"temporary_mb": step.temporary / 2**20, "state_mb": step.state_bytes / 2**20}
        emit("catalogue_size", items=n, lazy_rows=lazy, batch=config.train.batch_size, **values)


def main() -> None:
    """Measures the lazy steps, then the dense ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--dense", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = settings(args.batch, args.negatives)
    compare(config, args.items, True, args.rounds)
    if args.dense:
        compare(config, args.dense, False, args.rounds)


if __name__ == "__main__":
    main()
