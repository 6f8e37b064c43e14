"""Steps on the rows of item tables that a batch touches: against dense steps, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t2diff_jax.touched_rows import cut_batch, cut_rows, put_rows, touched_rows

MODELS = [
    dict(model__name="t2diff"),
    dict(model__name="sasrec", optim__tables="adagrad"),
    dict(model__name="t2diff_causal", optim__kernels="muon"),
    dict(model__name="sasrec", model__sketch_dim=4, optim__weight_decay=0.1),
    dict(model__name="sasrec", loss__exclude_seen=True, eval__exclude_seen=True, loss__seen_before=50),
]
COMMON = dict(optim__ema=0.9, optim__warmup=0, optim__learning_rate=0.01)


def steps(count, *, lazy, **changes):
    """(experiment, first state, state after `count` steps, their metrics) on one device."""
    parts = tiny.build((1, 1), **COMMON, **changes, optim__lazy_rows=lazy)
    start, step, metrics = parts.initial_state(), parts.compile_step(), []
    state = jax.tree.map(jnp.copy, start)
    for i in range(count):
        state, told = step(state, parts.catalogue, parts.batch_at(i))
        metrics.append(told)
    return parts, start, state, metrics


def has_item_rows(name):
    return "item_table" in name or "signature_table" in name


def with_item_rows(state):
    return {name: leaf for name, leaf in tiny.host(state).items() if has_item_rows(name)}


def test_touched_rows_by_hand():
    batch = {"history": jnp.array([[0, 7], [3, 7]]), "target": jnp.array([2, 3]), "negatives": jnp.array([5, 2])}
    rows = touched_rows(batch, 30)
    assert rows.tolist() == [0, 2, 3, 5, 7, 30 + 5, 30 + 6, 30 + 7, 30 + 8]
    places = cut_batch(batch | {"user": jnp.array([7, 7])}, rows)
    assert places["history"].tolist() == [[0, 4], [2, 4]] and places["target"].tolist() == [1, 2]
    assert places["negatives"].tolist() == [3, 1] and places["user"].tolist() == [7, 7]
    places = cut_batch(batch | {"before": jnp.array([[0, 3, 4], [1, 7, 29]])}, rows)
    assert places["before"].tolist() == [[0, 2, 0], [0, 4, 0]]  # what the step has no row for cannot be a negative
    assert touched_rows(batch, 8).tolist() == [0, 2, 3, 5, 7, 8 + 5, 8 + 6, 8 + 7]  # no more rows than there are


def test_cut_and_put_rows():
    tree = {"item_table": jnp.arange(12.0).reshape(6, 2), "kernel": jnp.zeros((6, 2))}
    rows = jnp.array([0, 4, 6])
    cut = cut_rows(tree, rows)
    assert cut["item_table"][:2].tolist() == [[0, 1], [8, 9]] and cut["kernel"].shape == (6, 2)
    new = put_rows(tree, jax.tree.map(lambda leaf: leaf - 1, cut), rows)
    assert new["item_table"].tolist() == [[-1, 0], [2, 3], [4, 5], [6, 7], [7, 8], [10, 11]]
    assert (new["kernel"] == -1).all()


@pytest.mark.parametrize("changes", MODELS)
def test_where_every_item_is_touched_the_step_is_the_dense_one(changes):
    parts, _, dense, expected = steps(3, lazy=False, loss__negatives=2000, **changes)
    _, start, lazy, metrics = steps(3, lazy=True, loss__negatives=2000, **changes)
    tiny.assert_close(metrics, expected)
    dense, lazy, start = (tiny.host(state) for state in (dense, lazy, start))
    moved, last = [], parts.catalogue.n_items + 1  # the rows above only fill the table: nothing names them
    for name, leaf in dense.items():
        if "['key']['bias']" in name:
            continue  # invisible to the softmax: its gradient is rounding, of which Adam makes whole steps
        a, b = (leaf[:last], lazy[name][:last]) if has_item_rows(name) else (leaf, lazy[name])
        np.testing.assert_allclose(b, a, atol=1e-6, err_msg=name)
        moved.append(np.abs(leaf - start[name]).max())
    assert max(moved) > 0.01


@pytest.mark.parametrize("changes", MODELS)
def test_a_step_leaves_all_other_rows_alone(changes):
    changes = {**changes, "loss__negatives": 2, "train__batch_size": 8, "data__window": 4, "optim__weight_decay": 0.0}
    changes["data__synthetic__n_items"] = 400
    parts, start, lazy, metrics = steps(1, lazy=True, **changes)
    _, _, dense, expected = steps(1, lazy=False, **changes)
    tiny.assert_close(metrics, expected)
    start, lazy, dense = with_item_rows(start), with_item_rows(lazy), with_item_rows(dense)
    batch = parts.host_batch_at(0)
    named = np.union1d(batch["history"], batch["target"])
    changed = (lazy[name] != start[name] for name in start)
    moved = {row for rows in changed for row in np.flatnonzero(rows.reshape(len(rows), -1).any(axis=1))}
    assert set(named) - {0} <= moved and len(moved - set(named) - {0}) <= 2
    assert len(moved) < parts.catalogue.n_items / 4
    others = sorted(set(range(parts.catalogue.n_rows)) - moved)
    for name in start:
        np.testing.assert_array_equal(lazy[name][others], start[name][others], err_msg=name)
        rows = sorted(moved)  # the first step of a row has no past to be late for
        np.testing.assert_allclose(lazy[name][rows], dense[name][rows], atol=1e-6, err_msg=name)


def test_what_a_step_needs_beside_the_state_does_not_grow_with_the_catalogue():
    def temporary(rows):
        parts = tiny.build((1, 1), model__row_multiple=rows, loss__negatives=8, optim__lazy_rows=True)
        rest, form = jax.tree.flatten((parts.catalogue, parts.batch_at(0)))

        def step(state, rest):
            return parts.compile_step()(state, *jax.tree.unflatten(form, rest))

        compiled = jax.jit(step, donate_argnums=0).lower(parts.initial_state(), rest).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(1 << 12), temporary(1 << 16)
    table = 4 * (1 << 16) * 4  # of the narrowest of the large tables' columns, in bytes
    assert large - small < table / 8


def test_training_goes_on_over_many_steps():
    """Late moments and rows that come and go: the loss falls as with dense steps."""
    changes = dict(model__name="sasrec", loss__negatives=16)
    (*_, lazy), (*_, dense) = (steps(40, lazy=lazy, **changes) for lazy in (True, False))
    first, last = (np.mean([float(m["loss"]) for m in lazy[part]]) for part in (slice(0, 5), slice(-5, None)))
    assert last < first - 0.3
    assert abs(last - np.mean([float(m["loss"]) for m in dense[-5:]])) < 0.1
