"""Training and evaluation on one device against its measured ceilings, by width and precision.

python benchmarks/accelerator.py [--dims 64 256] [--dtypes float32 bfloat16] [--batches 8 128] [--loop_steps 200]

The model is `ml1m_loo` over a made log as large as MovieLens 1M: windows of 200 with a target at every place, the
softmax over 3,400 items. `ms`: each step waited for, `ms_in_a_row`: only the last of twenty. `tflops`: of the matrix
products alone. `share_of_matrix`: of the ceiling of that precision, `share_of_memory`: bytes that the compiled program
is said to move, of the copy's ceiling. `busy`: share of the time in which the device computes. `through_loop`:
examples/s of the whole training loop, its own batches and lines included.
"""

import argparse
import concurrent.futures
import sys
import time
from collections.abc import Callable

import jax
from ceilings import ceilings
from kernels import device_time
from measure import emit, seconds
from train_throughput import through_loop

from configs import ml1m_loo
from t2diff_jax import experiment as experiment_lib
from t2diff_jax.config import Config
from t2diff_jax.config_values import from_mapping
from t2diff_jax.program_cost import product_flops


def settings(dim: int, dtype: str, batch: int, steps: int, users: int) -> Config:
    """The configuration of one measurement."""
    values = ml1m_loo.get_config()
    values.data.source = "synthetic"
    values.data.synthetic.update(dict(n_users=users, n_items=3416, mean_length=165))
    values.model.update(dict(dim=dim, hidden=4 * dim, dtype=dtype))
    values.loss.chunk = 0
    values.eval.update(dict(batch_size=512, noise_keys=1))
    steps = max(steps, 1)
    values.train.update(dict(batch_size=batch, steps=steps, log_every=20, eval_every=steps, checkpoint_every=steps))
    return from_mapping(values)


class Measured:
    """One configuration, its step compiled and its state made."""

    def __init__(self, config: Config):
        self.experiment = experiment_lib.build(config)
        self.window = config.data.window
        self.state, self.batch = self.experiment.initial_state(), self.experiment.batch_at(0)
        print(f"{config.model.dim} {config.model.dtype} {config.train.batch_size}: state made", file=sys.stderr)
        start = time.perf_counter()
        traced = self.experiment.compile_step().trace(self.state, self.experiment.catalogue, self.batch)
        self.flops, self.step = product_flops(traced.jaxpr.jaxpr), traced.lower().compile()
        self.compile_s = time.perf_counter() - start
        self.bytes = (self.step.cost_analysis() or {}).get("bytes accessed", float("nan"))

    def __call__(self) -> jax.Array:
        """One training step."""
        self.state, metrics = self.step(self.state, self.experiment.catalogue, self.batch)
        return metrics["loss"]

    def evaluated(self) -> dict[str, float]:
        """Users/s of ranks and log loss over all items, and milliseconds per user of the tower alone."""
        evaluator, targets = self.experiment.evaluator(), self.experiment.split.test
        variables = self.state.evaluation_variables()
        ranks = seconds(lambda: evaluator.score_targets(variables, targets, 1).ranks, repeats=2)["min"]
        tower = evaluator.milliseconds_per_user(variables, targets)
        return {"users": len(targets), "users_per_s": len(targets) / ranks, "tower_ms_per_user": tower}


def measure(cells: list[tuple[int, str, int]], args: argparse.Namespace, most: dict[str, float]) -> None:
    """Compiles programs of one width side by side, then measures one after another."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda cell: Measured(settings(*cell, args.loop_steps, args.users)), cells))
    for (dim, dtype, batch), one in zip(cells, made, strict=True):
        step = seconds(one, repeats=20, warmup=3)["median"]
        ceiling = most["bfloat16" if dtype == "bfloat16" else "float32_default"]
        values = {"ms": 1000 * step, "ms_in_a_row": 1000 * in_a_row(one)}
        values |= {"examples_per_s": batch / step, "targets_per_s": batch * one.window / step}
        values |= {"tflops": one.flops / step / 1e12, "share_of_matrix": one.flops / step / 1e12 / ceiling}
        values |= {"share_of_memory": one.bytes / step / 1e9 / most["copy"], "compile_s": one.compile_s}
        values |= device_time(one)
        if args.loop_steps:
            values["through_loop"] = through_loop(one.experiment)
        emit("accelerator_train", dim=dim, dtype=dtype, batch=batch, **values)
        if batch == args.batches[-1]:
            emit("accelerator_users", dim=dim, dtype=dtype, **one.evaluated())


def in_a_row(call: Callable[[], jax.Array], calls: int = 20) -> float:
    """Seconds a call of several of which only the last is waited for, as a loop makes them."""
    return seconds(lambda: [call() for _ in range(calls)][-1], repeats=5)["median"] / calls


def main() -> None:
    """Width by width, so that what has been measured stands though the next takes long to compile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--loop_steps", type=int, default=200, help="0: without the loop")
    parser.add_argument("--users", type=int, default=6040)
    parser.add_argument("--size", type=int, default=8192, help="of the products that measure the ceilings")
    args = parser.parse_args()
    most = ceilings(args.size)
    emit("accelerator_ceilings", **most)
    for dim in args.dims:
        measure([(dim, dtype, batch) for batch in args.batches for dtype in args.dtypes], args, most)


if __name__ == "__main__":
    main()
