"""The train state: what it holds, its shapes before anything is computed, and the first one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t2diff_jax.train_state import TrainState


@pytest.fixture(scope="module")
def experiment():
    return tiny.build((1, 1), model__name="sasrec", optim__ema=0.9)


@pytest.fixture(scope="module")
def state(experiment):
    return experiment.initial_state()


def test_the_state_is_what_was_announced(experiment, state):
    abstract = experiment.abstract_state
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_the_first_state(experiment, state):
    assert state.step.dtype == jnp.int32 and state.step == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    tiny.assert_same_bits(state.ema, state.params)
    table = np.asarray(state.params["items"]["item_table"])
    assert table.shape == (experiment.catalogue.n_rows, 6)
    assert 0.9 < table.std() / experiment.config.model.init_sd < 1.1


def test_no_key_is_kept(state):
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))


def test_without_averaging_there_is_no_average():
    assert tiny.build((1, 1), model__name="sasrec").abstract_state.ema is None


def test_statistics_are_not_parameters():
    abstract = tiny.build((1, 1)).abstract_state
    assert set(abstract.stats) == {"drift_square", "drift_weight"}
    assert not any("drift_" in name for name in tiny.host(jax.tree.map(lambda s: 0, abstract.params)))


def test_evaluation_uses_the_average_where_there_is_one():
    state = TrainState(jnp.int32(1), {"w": 1.0}, (), {"w": 2.0}, {"s": 3.0}, None)
    assert state.evaluation_variables() == {"params": {"w": 2.0}, "stats": {"s": 3.0}}
    assert state._replace(ema=None).evaluation_variables() == {"params": {"w": 1.0}, "stats": {"s": 3.0}}


def test_bfloat16_compute_keeps_float32_parameters():
    abstract = tiny.build((1, 1), model__dtype="bfloat16").abstract_state
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract.params)} == {jnp.dtype("float32")}
