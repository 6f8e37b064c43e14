"""The train state: all that a checkpoint holds. No key: randomness is a function of the seed and the step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from t2diff_jax import rng
from t2diff_jax.negatives import Frequencies, initial_frequencies
from t2diff_jax.sharding import state_shardings
from t2diff_jax.types import Batch, Catalogue, Params, Retriever, Variables


class TrainState(NamedTuple):
    """Attributes:

    step: int32, steps done.
    params: learned parameters, float32.
    opt_state: the optimiser's state.
    ema: averaged parameters, or None where averaging is off.
    stats: running statistics of the model (drift scale); not learned.
    frequencies: how often batches bring each item, or None where no negatives are drawn from them.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    ema: Params | None
    stats: Any
    frequencies: Frequencies | None

    def evaluation_variables(self) -> Variables:
        """What evaluation uses: the averaged parameters where there are any."""
        return {"params": self.params if self.ema is None else self.ema, "stats": self.stats}


def init_state(
    key: jax.Array,
    catalogue: Catalogue,
    batch: Batch,
    *,
    retriever: Retriever,
    tx: optax.GradientTransformation,
    average: bool,
    count_draws: bool,
) -> TrainState:
    """The state before the first step."""
    variables = retriever.init(key, catalogue, batch)
    params = variables["params"]
    ema = jax.tree.map(jnp.copy, params) if average else None
    frequencies = initial_frequencies(catalogue.n_rows, catalogue.n_items) if count_draws else None
    return TrainState(jnp.int32(0), params, tx.init(params), ema, variables["stats"], frequencies)


def abstract_state(
    mesh: Mesh,
    catalogue: Catalogue,
    batch: Batch,
    *,
    retriever: Retriever,
    tx: optax.GradientTransformation,
    average: bool,
    count_draws: bool,
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is computed. What a checkpoint is restored against."""
    recipe = dict(retriever=retriever, tx=tx, average=average, count_draws=count_draws)
    init = functools.partial(init_state, **recipe)
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), catalogue, batch)
    shardings = state_shardings(mesh, shapes)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def make_state(
    seed: int,
    abstract: TrainState,
    catalogue: Catalogue,
    batch: Batch,
    *,
    retriever: Retriever,
    tx: optax.GradientTransformation,
    average: bool,
    count_draws: bool,
) -> TrainState:
    """The initial state, born sharded: no device ever holds the whole of a sharded table."""

    def init(key: jax.Array, catalogue: Catalogue, batch: Batch) -> TrainState:
        recipe = dict(retriever=retriever, tx=tx, average=average, count_draws=count_draws)
        return init_state(key, catalogue, batch, **recipe)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # It runs once: on a CPU good code for it takes longer to make than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(rng.stream(seed, "init"), catalogue, batch)
