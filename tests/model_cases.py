"""Makers of small models and of the batches that exercise them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from t2diff_jax.config import Config
from t2diff_jax.config_values import from_mapping
from t2diff_jax.models import build_retriever
from t2diff_jax.types import Batch, Catalogue, Retriever, Sizes, Variables

ITEMS, ROWS, WINDOW = 12, 16, 6
CATEGORIES, CONTENT, USER_FEATURES = 4, 3, (3, 4)
SIZES = Sizes(
    rows=ROWS, window=WINDOW, categories=CATEGORIES, content=CONTENT, user_features=USER_FEATURES, lags=True, users=20
)
PLAIN = Sizes(rows=ROWS, window=WINDOW, categories=0, content=0, user_features=(), lags=False, users=20)


def small_config(**changes: object) -> Config:
    """The base configuration at the smallest sizes that use every part; `model__dim=4` sets a nested key."""
    config = base.get_config()
    config.data.window = WINDOW
    config.model.update(dim=8, category_dim=2, content_dim=2, user_feature_dim=2, layers=1, hidden=8, dropout=0.0)
    config.model.update(session_length=3, activation_hidden=4, init_sd=0.5)
    config.diffusion.update(steps=5, filters=(4, 8), step_dim=4)
    for key, value in changes.items():
        *sections, name = key.split("__")
        functools.reduce(lambda section, name: section[name], sections, config)[name] = value
    return from_mapping(config)


def make_catalogue(sizes: Sizes = SIZES, items: int = ITEMS, seed: int = 0) -> Catalogue:
    """Items with none, one or two categories and random content; the rows above the last item are filling."""
    draw = np.random.default_rng(seed)
    item = (np.arange(sizes.rows) > 0) & (np.arange(sizes.rows) <= items)
    categories = draw.integers(0, max(sizes.categories, 1), (sizes.rows, 2)) * item[:, None]
    content = draw.normal(size=(sizes.rows, max(sizes.content, 1))) * item[:, None]
    return Catalogue(
        counts=jnp.asarray(item, jnp.float32),
        categories=jnp.asarray(categories, jnp.int32) if sizes.categories else None,
        content=jnp.asarray(content, jnp.float32) if sizes.content else None,
        n_items=items,
    )


def make_batch(*, sizes: Sizes = SIZES, lengths: tuple[int, ...] = (6, 4, 1, 0, 5), session: int = 3) -> Batch:
    """One row per window length, all of weight 1 but the last, which only fills the batch (its target is padding)."""
    draw, rows, window = np.random.default_rng(1), len(lengths), sizes.window
    valid = np.arange(window) >= window - np.array(lengths)[:, None]
    weight = np.arange(rows) < rows - 1
    batch = {
        "history": draw.integers(1, ITEMS + 1, (rows, window)) * valid,
        "session_length": np.minimum(lengths, session),
        "target": draw.integers(1, ITEMS + 1, rows) * weight,
        "weight": weight.astype(np.float32),
        "user": np.arange(rows) + 7,
        "position": np.array(lengths),
    }
    if sizes.lags:
        batch["age"] = -np.sort(-(2 ** draw.uniform(0, 31, (rows, window))).astype(np.int64), axis=1) * valid
    if sizes.user_features:
        batch["user_features"] = np.stack([draw.integers(0, n, rows) for n in sizes.user_features], axis=1)
    return {k: jnp.asarray(v, v.dtype if v.dtype == np.float32 else np.int32) for k, v in batch.items()}


def put(tree: object, path: tuple[str, ...], change: object) -> object:
    """A copy of nested dicts with the leaf at `path` replaced by change(leaf)."""
    head, *rest = path
    value = put(tree[head], tuple(rest), change) if rest else change(tree[head])
    return {**tree, head: value}


def named_leaves(tree: object) -> dict[str, np.ndarray]:
    """The leaves as numpy arrays, by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in leaves}


def drawn(init: Callable, *args: object, scale: float = 0.5, **options: object) -> object:
    """Parameters in the shapes of `init(key, *args)["params"]`, none neutral (biases are not 0), nothing compiled."""
    variables = jax.eval_shape(functools.partial(init, **options), jax.random.key(0), *args)
    leaves, structure = jax.tree.flatten(variables.get("params", {}))
    return structure.unflatten([jnp.asarray(scale * normal(i, *a.shape)) for i, a in enumerate(leaves)])


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal float32, drawn by numpy: nothing to compile."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def float64(tree: object) -> object:
    """The leaves in float64, for a numpy reference."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


# Running a retriever on the catalogue of `make_catalogue()`

# The drift's statistics in the middle of a training.
STATS = {"drift_square": jnp.float32(0.6), "drift_weight": jnp.float32(0.5)}


@functools.cache
def built(**changes: object) -> tuple[Retriever, Variables]:
    """The retriever of a small configuration with every part present, parameters off their start."""
    retriever = build_retriever(small_config(**changes), SIZES)
    return retriever, {"params": drawn(retriever.init, make_catalogue(), make_batch()), "stats": STATS}


@functools.cache
def user_vectors(retriever: Retriever) -> Callable:
    """Compiled (variables, batch, key) -> user vectors [B, M, U]."""
    catalogue = make_catalogue()
    return jax.jit(lambda variables, batch, key: retriever.encode_user(variables, catalogue, batch, key)[0])


@functools.cache
def gradients_of_parts(retriever: Retriever) -> Callable:
    """Compiled (params, stats, batch) -> (tower, diffusion and total loss, the gradient of each, updated stats)."""
    catalogue = make_catalogue()

    def part(params: object, chosen: jax.Array, stats: object, batch: Batch) -> tuple:
        variables = {"params": params, "stats": stats}
        loss, (metrics, stats) = retriever.loss(variables, catalogue, batch, jax.random.key(0))
        losses = jnp.stack([metrics["loss_tower"], metrics.get("loss_diffusion", 0 * loss), loss])
        return losses @ chosen, (losses, stats)

    gradient = jax.jit(jax.grad(part, has_aux=True))

    def run(params: object, stats: object, batch: Batch) -> tuple:
        results = [gradient(params, chosen, stats, batch) for chosen in np.eye(3, dtype=np.float32)]
        losses, stats = results[0][1]
        return losses, [g for g, _ in results], stats

    return run


def scores_after(retriever: Retriever, variables: Variables, batch: Batch, *, steps: int, rate: float) -> np.ndarray:
    """Scores of all items [B, N] after so many steps of Adam on one batch without item features."""
    catalogue, key, tx = make_catalogue(PLAIN), jax.random.key(0), optax.adam(rate)

    @jax.jit
    def fit(variables: Variables) -> jax.Array:
        def step(carry: tuple, i: jax.Array) -> tuple:
            variables, state = carry

            def loss(params: object) -> tuple:
                return retriever.loss({**variables, "params": params}, catalogue, batch, jax.random.fold_in(key, i))

            gradient, (_, stats) = jax.grad(loss, has_aux=True)(variables["params"])
            updates, state = tx.update(gradient, state)
            return ({"params": optax.apply_updates(variables["params"], updates), "stats": stats}, state), None

        (variables, _), _ = jax.lax.scan(step, (variables, tx.init(variables["params"])), jnp.arange(steps))
        users, _ = retriever.encode_user(variables, catalogue, batch, key)
        return users[:, 0] @ retriever.encode_items(variables, catalogue).T

    return np.asarray(fit(variables))[:, 1 : ITEMS + 1]
