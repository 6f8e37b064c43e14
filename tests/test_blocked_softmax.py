"""The full softmax in blocks of items: equal to the one over all at once, whatever the blocks and the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from model_cases import normal

from t2diff_jax.blocked_softmax import blocked_log_totals
from t2diff_jax.losses import mean_full_softmax
from t2diff_jax.seen import Seen

ITEMS, ROWS, WIDTH = 19, 24, 3  # rows 20.. only fill the table
IS_ITEM = (jnp.arange(ROWS) > 0) & (jnp.arange(ROWS) <= ITEMS)
HISTORY = jnp.asarray(np.random.default_rng(0).integers(0, ITEMS + 1, (3, 5)))
TARGETS = jnp.array([19, 1, 7, 3, 8, 8, 12, 2, 5, 1, 18, 4])
WEIGHTS = jnp.array([1.0, 0.5, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0])
TABLE = jnp.asarray(normal(1, ROWS, WIDTH))


def users(vectors):
    return jnp.asarray(normal(2, len(TARGETS), vectors, WIDTH))


def test_by_hand():
    """e^scores 1, 2, 3 (no item), 5: the sum of the items is 8, without what was seen 6 and 2, the target stays."""
    table = jnp.log(jnp.array([[1.0], [2.0], [3.0], [5.0]]))
    is_item, one = jnp.array([True, True, False, True]), jnp.ones((2, 1, 1))
    for block, parts in ((1, 1), (3, 1), (9, 1), (2, 2), (4, 4)):
        size = dict(block=block, parts=parts)
        found = blocked_log_totals(one, table, jnp.array([0, 0]), is_item, None, **size)
        np.testing.assert_allclose(found, np.log([[8], [8]]), rtol=1e-6)
        seen = Seen.of(jnp.array([[1, 3]]), 2)
        found = blocked_log_totals(one, table, jnp.array([0, 3]), is_item, seen, **size)
        np.testing.assert_allclose(found, np.log([[6], [6]]), rtol=1e-6)
        found = blocked_log_totals(one, table, jnp.array([0, 0]), is_item, seen, **size)
        np.testing.assert_allclose(found, np.log([[6], [1]]), rtol=1e-6)


@pytest.mark.parametrize("merge", ["softmax_mean", "logsumexp"])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize(("block", "parts"), [(1, 1), (5, 1), (24, 1), (100, 1), (7, 4), (8, 8)])
def test_loss_and_gradient_are_those_of_the_whole_matrix(block, parts, excluded, merge):
    """Where blocks do not divide the rows, and with two vectors a user."""
    seen = Seen.of(HISTORY, 4) if excluded else None

    def mean(users, table, **how):
        args = users, table, TARGETS, IS_ITEM, WEIGHTS, seen
        return mean_full_softmax(*args, label_smoothing=0.0, merge=merge, chunk=0, **how)

    whole, cut = (jax.value_and_grad(functools.partial(mean, **how), argnums=(0, 1)) for how in
                  ({}, dict(block=block, parts=parts)))  # fmt: skip
    expected, found = whole(users(2), TABLE), jax.jit(cut)(users(2), TABLE)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.any(np.asarray(found[1][1])[~np.asarray(IS_ITEM)])


def test_rows_that_are_no_items_do_not_count():
    garbage = jnp.where(IS_ITEM[:, None], TABLE, 1e6)
    found = [blocked_log_totals(users(1), t, TARGETS, IS_ITEM, None, block=5, parts=1) for t in (TABLE, garbage)]
    np.testing.assert_array_equal(*found)


def test_where_nothing_is_left():
    """No item at all: -inf, and a gradient of zero. Great scores: finite."""
    nothing = jnp.zeros(ROWS, bool)

    def total(users, table, is_item):
        found = blocked_log_totals(users, table, jnp.zeros_like(TARGETS), is_item, None, block=5, parts=2)
        return jnp.where(found > -jnp.inf, found, 0).sum(), found

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    gradients, found = gradient(users(1), TABLE, nothing)
    assert np.isneginf(found).all() and not any(map(np.any, gradients))
    gradients, found = gradient(1e4 * users(1), TABLE, IS_ITEM)
    assert np.isfinite(found).all() and all(np.isfinite(g).all() for g in gradients)


def sizes(jaxpr):
    """Elements of every array that a program makes, those of its loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size"))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@pytest.mark.parametrize("excluded", [False, True])
def test_no_array_grows_with_targets_times_items(excluded):
    rows, queries, block = 8192, 512, 64
    seen = Seen.of(jnp.ones((8, 64), jnp.int32), 64) if excluded else None

    def mean(users, table):
        args = users, table, jnp.ones(queries, jnp.int32), jnp.ones(rows, bool), jnp.ones(queries), seen
        return mean_full_softmax(*args, label_smoothing=0.0, merge="logsumexp", chunk=0, block=block, parts=8)

    args = jnp.zeros((queries, 1, 4)), jnp.zeros((rows, 4))
    largest = max(sizes(jax.make_jaxpr(jax.grad(mean, argnums=(0, 1)))(*args).jaxpr))
    assert largest == rows * 4 == queries * block


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_no_row_of_a_sharded_table_moves(shape):
    """The compiled gradient gathers nothing of the table's size, and each device keeps its rows of the gradient."""
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows, width = 8192, 16
    by_row, by_user = NamedSharding(mesh, PartitionSpec("model")), NamedSharding(mesh, PartitionSpec("data"))

    def total(users, table):
        targets, is_item = jnp.ones(len(users), jnp.int32), jnp.ones(rows, bool)
        return blocked_log_totals(users, table, targets, is_item, None, block=64, parts=8).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)), in_shardings=(by_user, by_row), out_shardings=(by_user, by_row))
    text = gradient.lower(jnp.zeros((16, 1, width)), jnp.zeros((rows, width))).compile().as_text()
    moved = [line for line in text.splitlines() if "all-gather(" in line or "all-to-all(" in line]
    assert not any(f"{rows // parts}" in line for line in moved for parts in (1, 2, 4, 8)), moved
