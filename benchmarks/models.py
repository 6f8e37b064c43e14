"""Every retriever at the shape of MovieLens 1M: parameters, ms of a training step and of a user, beside SASRec's.

python benchmarks/models.py [--rounds 5] [--users 64]

Random windows of 200 of 3,416 items, width 128, 8 windows a step: `configs/ml1m_loo.py` and `configs/rivals/`. The
models take turns in every round, so that whatever else the machine does slows them all alike.
"""

import argparse
import importlib
import pkgutil
import statistics
from collections.abc import Callable

import jax
import numpy as np
from measure import emit, seconds
from ml_collections import ConfigDict

from configs import ml1m_loo, rivals
from t2diff_jax import experiment as experiment_lib
from t2diff_jax.config_values import from_mapping
from t2diff_jax.data.batches import Windows, gather
from t2diff_jax.sharding import put_batch

REFERENCE = "sasrec"
RIVALS = tuple(module.name for module in pkgutil.iter_modules(rivals.__path__))
OURS = {
    "T2Diff": {},
    "T2Diff, four intents": {
        "diffusion.samples": 4,
        "diffusion.noise": "intent",
        "loss.merge": "logsumexp",
        "eval.merge": "logsumexp",
    },
    "T2Diff, slot empty": {"model.slot": "empty"},
}
Calls = dict[str, Callable[[], object]]


def configs() -> dict[str, ConfigDict]:
    """A configuration per row."""
    found = {name: importlib.import_module(f"configs.rivals.{name}").get_config() for name in RIVALS}
    for name, changes in OURS.items():
        found[name] = ml1m_loo.get_config()
        found[name].update_from_flattened_dict(changes)
    return found


def prepared(values: ConfigDict, users: int, small: bool) -> tuple[int, Calls]:
    """Parameters of the model, and its compiled calls: a training step, and the user vectors of a batch."""
    values.data.source = "synthetic"
    values.data.synthetic.update(dict(n_users=2000, n_items=3416, mean_length=165))
    if small:
        values.data.update(dict(window=16))
        values.data.synthetic.update(dict(n_users=60, n_items=50, mean_length=20))
        values.model.update(dict(dim=16, category_dim=4, content_dim=4, hidden=16, heads=2))
    experiment = experiment_lib.build(from_mapping(values))
    state, step, batch = experiment.initial_state(), experiment.compile_step(), experiment.batch_at(0)
    variables, key = jax.tree.map(jax.numpy.copy, state.evaluation_variables()), jax.random.key(0)
    targets = experiment.split.test.first(users)
    rows = np.resize(np.arange(len(targets)), users)
    windows = Windows.of(experiment.config)
    requests = gather(experiment.log, targets.users[rows], targets.positions[rows], windows)
    some = put_batch(experiment.mesh, requests, users)
    encode = jax.jit(experiment.retriever.encode_user)

    def one_step() -> object:
        nonlocal state
        state, metrics = step(state, experiment.catalogue, batch)
        return metrics["loss"]

    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return size, {"step": one_step, "user": lambda: encode(variables, experiment.catalogue, some, key)}


def main() -> None:
    """Compiles all, then times them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=64, help="users a call")
    parser.add_argument("--models", nargs="+", default=[*OURS, *RIVALS], help="which of the rows")
    parser.add_argument("--small", action="store_true", help="toy sizes, to see that it runs")
    args = parser.parse_args()
    chosen = {name: values for name, values in configs().items() if name in (*args.models, REFERENCE)}
    models = {name: prepared(values, args.users, args.small) for name, values in chosen.items()}
    times = {(name, what): [] for name in models for what in ("step", "user")}
    for number in range(args.rounds):
        for name, what in times:
            found = seconds(models[name][1][what], repeats=1, warmup=0 if number else 2)
            times[name, what].append(1e3 * found["min"])
    middle = {which: statistics.median(values) for which, values in times.items()}
    for name, (size, _) in models.items():
        step, user = middle[name, "step"], middle[name, "user"] / args.users
        ratios = {f"{what}_over_{REFERENCE}": middle[name, what] / middle[REFERENCE, what] for what in ("step", "user")}
        emit("models", model=name, parameters=size, step_ms=step, user_ms=user, **ratios)


if __name__ == "__main__":
    main()
