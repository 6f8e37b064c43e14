"""Training examples/s through the whole loop, beside the same compiled step fed one prepared batch, in one run.

python benchmarks/train_throughput.py --data DIR [--config ml1m_paper] [--steps 400]

The published TensorFlow implementation on the same work (MovieLens 1M, width 4, window 50, T = 50, batch 512) and 2 CPU
cores of this class: 488 examples/s through its own loop, 1,550 in its train op, 3,400 when fed prepared arrays.
"""

import argparse
import importlib
import json
import pathlib
import statistics
import tempfile

import jax
from measure import emit, seconds

from t2diff_jax import experiment as experiment_lib
from t2diff_jax import loop
from t2diff_jax.config_values import from_mapping

PUBLISHED_LOOP = 488


def through_loop(experiment: experiment_lib.Experiment) -> float:
    """Examples/s of the whole loop, the median of its lines but the first, which holds the compilation."""
    with tempfile.TemporaryDirectory() as workdir:
        loop.train(experiment, pathlib.Path(workdir))
        lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([line["examples_per_s"] for line in lines if line["split"] == "train"][1:])


def main() -> None:
    """Measures the loop, then the bare step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the raw MovieLens 1M files")
    parser.add_argument("--config", default="ml1m_paper", help="name of a file in configs/")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    values = importlib.import_module(f"configs.{args.config}").get_config()
    values.data.path = args.data
    values.train.update(dict(steps=args.steps, log_every=20, eval_every=args.steps, checkpoint_every=args.steps))
    config = from_mapping(values)
    experiment = experiment_lib.build(config)
    through = through_loop(experiment)
    step, batch = experiment.compile_step(), experiment.batch_at(0)
    state = experiment.initial_state()

    def bare() -> jax.Array:
        nonlocal state
        state, metrics = step(state, experiment.catalogue, batch)
        return metrics["loss"]

    alone = config.train.batch_size / seconds(bare, repeats=50, warmup=3)["median"]
    result = {"config": args.config, "batch": config.train.batch_size, "examples_per_s": through}
    result |= {"examples_per_s_step_alone": alone, "ratio": through / alone}
    if args.config == "ml1m_paper":
        result |= {"published_examples_per_s": PUBLISHED_LOOP, "times_faster": through / PUBLISHED_LOOP}
    emit("train_throughput", **result)


if __name__ == "__main__":
    main()
