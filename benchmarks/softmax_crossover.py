"""Milliseconds of a training step with the softmax over all items and with drawn negatives, by catalogue size.

python benchmarks/softmax_crossover.py [--items 5000 10000 20000 50000 100000] [--config table] [--slot empty]

`ratio`: full to sampled, which has lazy rows; where it passes 1 is the cross-over. The configuration gives model, batch
and window; ids are drawn uniformly. `temporary_mb`: what the full step needs beside its arguments.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import statistics

import jax
from catalogue_size import Sized
from measure import emit, seconds

from t2diff_jax.config_values import from_mapping


def main() -> None:
    """One line per size: full and sampled in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[5_000, 10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--config", default="table", help="name of a file in configs/")
    parser.add_argument("--slot", default="", help="model.slot; where it is not given that of the configuration")
    parser.add_argument("--negatives", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=0, help="windows of a step; 0: as the configuration has")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    values = importlib.import_module(f"configs.{args.config}").get_config()
    values.data.real_times = False
    values.model.slot = args.slot or values.model.slot
    values.train.batch_size = args.batch or values.train.batch_size
    if jax.default_backend() != "cpu":
        values.loss.chunk = 0  # chunks are for the caches of CPUs
    values.loss.negatives, values.optim.lazy_rows = 0, False
    full = from_mapping(values)
    sampled = dataclasses.replace(full, loss=dataclasses.replace(full.loss, negatives=args.negatives))
    targets = full.train.batch_size * (1 if full.model.name == "t2diff" else full.data.window)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # they compile side by side
        made = {
            items: {"full": pool.submit(Sized, full, items, False), "sampled": pool.submit(Sized, sampled, items, True)}
            for items in args.items
        }
    for items, steps in made.items():
        steps = {name: step.result() for name, step in steps.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.rounds):
            for name, step in steps.items():
                times[name].append(seconds(step, repeats=2)["median"])
        medians = {name: statistics.median(found) for name, found in times.items()}
        values = {"full_ms": 1000 * medians["full"], "sampled_ms": 1000 * medians["sampled"]}
        values |= {"ratio": medians["full"] / medians["sampled"], "temporary_mb": steps["full"].temporary / 2**20}
        what = dict(config=args.config, slot=full.model.slot, targets=targets, negatives=args.negatives, items=items)
        emit("softmax_crossover", **what, **values)


if __name__ == "__main__":
    main()
