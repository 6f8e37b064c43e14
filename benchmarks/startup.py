"""Wall time of import, building, first step, steady step and evaluation, without and with the compilation cache.

python benchmarks/startup.py [--config quickstart] [--data DIR]

Each measurement is a fresh process; the second and third share one cache folder, so the third finds it filled.
"""

import argparse
import json
import subprocess
import sys
import tempfile

CHILD = """
import sys, time
start = time.perf_counter()
import importlib, json, jax
from t2diff_jax import experiment as experiment_lib
from t2diff_jax.config_values import from_mapping
times = {"import": time.perf_counter() - start}

def clock(name, call):
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    times[name] = time.perf_counter() - start
    return result

name, data, cache = sys.argv[1:4]
values = importlib.import_module(f"configs.{name}").get_config()
values.data.path = data
if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
experiment = clock("build", lambda: experiment_lib.build(from_mapping(values)))
state = clock("initial_state", experiment.initial_state)
step, batch = experiment.compile_step(), experiment.batch_at(0)
state, _ = clock("first_step", lambda: step(state, experiment.catalogue, batch))
for _ in range(5):
    state, _ = clock("steady_step", lambda: step(state, experiment.catalogue, batch))
evaluator, targets = experiment.evaluator(), experiment.split.validation
clock("first_evaluation", lambda: evaluator.score_targets(state.evaluation_variables(), targets, 1))
clock("evaluation", lambda: evaluator.score_targets(state.evaluation_variables(), targets, 1))
print(json.dumps(times | {"targets": len(targets)}))
"""


def main() -> None:
    """Three processes: no cache, empty cache, filled cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="quickstart", help="name of a file in configs/")
    parser.add_argument("--data", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        for name, folder in (("no cache", ""), ("cache being filled", cache), ("cache filled", cache)):
            command = [sys.executable, "-c", CHILD, args.config, args.data, folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            times = {key: round(value, 3) for key, value in json.loads(output.splitlines()[-1]).items()}
            print(json.dumps({"benchmark": "startup", "config": args.config, "compilation": name, **times}), flush=True)


if __name__ == "__main__":
    main()
