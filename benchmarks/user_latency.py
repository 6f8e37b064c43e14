"""User tower with the 50-step reverse process: ms per user at batch 1 and 512, beside the bare estimator calls.

python benchmarks/user_latency.py [--dim 4]

The bound is the same number of estimator calls without noise, posterior and towers, in the same run. The published
TensorFlow implementation, measured on 2 CPU cores of this class at width 4: 4.5 ms per user at batch 512, 114 ms at 1.
"""

import argparse

import jax
import jax.numpy as jnp
from measure import emit, seconds

from configs import base, ml1m_paper
from t2diff_jax.config_values import from_mapping
from t2diff_jax.models import build_retriever
from t2diff_jax.types import Catalogue, Sizes

PUBLISHED = {512: 4.5, 1: 114.0}
ITEMS, CATEGORIES = 3706, 18


def main() -> None:
    """Measures both batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=4, choices=(4, 64), help="4: the paper's sizes; 64: the base config")
    dim = parser.parse_args().dim
    values = ml1m_paper.get_config() if dim == 4 else base.get_config()
    values.diffusion.update(dict(sampler="ddpm", sampler_steps=50))
    config = from_mapping(values)
    rows = -(-(ITEMS + 1) // config.model.row_multiple) * config.model.row_multiple
    model = build_retriever(config, Sizes(rows, config.data.window, CATEGORIES + 1, 0, (), False, users=1))
    key = jax.random.key(0)
    categories = jax.random.randint(key, (rows, 6), 0, CATEGORIES + 1)
    catalogue = Catalogue(jnp.ones(rows), categories, None, ITEMS)
    for size in (512, 1):
        measure(model, catalogue, size, key)


def measure(model, catalogue: Catalogue, size: int, key: jax.Array) -> None:
    """One batch size: the whole user tower, and its estimator calls alone."""
    length = model.sizes.window
    ids = jax.random.randint(key, (size, length), 1, ITEMS + 1)
    rows = jnp.arange(size)
    batch = {"history": ids, "session_length": jnp.full(size, 10), "user": rows, "position": rows}
    variables = model.init(key, catalogue, batch)
    encode = jax.jit(model.encode_user)
    tower = seconds(lambda: encode(variables, catalogue, batch, key), repeats=5 if size > 1 else 30)

    @jax.jit
    def calls(variables, z):
        mask = jnp.ones(z.shape[:2], bool)
        params = {"params": variables["params"]}
        prepared = model.net.apply(params, z, mask, method="prepare")

        def step(z, r):
            return model.net.apply(params, z, r[None], prepared, mask, method="estimate"), None

        return jax.lax.scan(step, z, jnp.arange(model.diffusion.steps, 0, -1))[0]

    z = jax.random.normal(key, (size, length, model.model.dim))
    bare = seconds(lambda: calls(variables, z), repeats=5 if size > 1 else 30)
    result = {"batch": size, "dim": model.model.dim, "ms_per_user": 1e3 * tower["median"] / size}
    result |= {"ms_per_user_estimator_alone": 1e3 * bare["median"] / size, "ratio": tower["median"] / bare["median"]}
    if model.model.dim == 4:
        result |= {"published_ms_per_user": PUBLISHED[size], "times_faster": PUBLISHED[size] / result["ms_per_user"]}
    emit("user_latency", **result)


if __name__ == "__main__":
    main()
