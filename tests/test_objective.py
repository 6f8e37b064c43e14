"""Targets at every position. The rest of the objective is tested through the models and the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import ITEMS, built, make_batch, make_catalogue, normal

from t2diff_jax.models.objective import expected_item, next_items, step_items
from t2diff_jax.seen import Seen


def test_next_items_by_hand():
    """A window's behaviours predict what came next; padding and rows of weight 0 count nothing, but name an item."""
    batch = {
        "history": jnp.array([[3, 1, 2], [0, 0, 5], [0, 0, 0], [4, 4, 4]]),
        "target": jnp.array([7, 8, 9, 0]),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]),
    }
    targets, weights = next_items(batch)
    assert targets.tolist() == [[1, 2, 7], [1, 5, 8], [1, 1, 9], [4, 4, 1]]
    assert weights.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("negatives", [0, 3])
def test_cross_entropy_against_the_embeddings(negatives):
    """Of generated items: softmax over e(i), or over sampled e(i); the table learns nothing from it."""
    retriever, variables = built(model__name="t2diff_causal", model__sketch_dim=4, loss__negatives=negatives)
    catalogue, batch = make_catalogue(), make_batch()
    targets, weights = next_items(batch)
    vectors = jnp.asarray(normal(1, *targets.shape, 8))
    if negatives:
        batch = {**batch, "negatives": jnp.array([2, 5, 2]), "log_counts": jnp.full(3, jnp.log(3 / ITEMS))}

    def loss(params, vectors):
        items = step_items(retriever.net, {"params": params}, catalogue, retriever.loss_config, batch)
        return items.embedding_cross_entropy(vectors[:, :, None], targets, weights)

    value, (params, found) = jax.value_and_grad(loss, argnums=(0, 1))(variables["params"], vectors)
    assert not any(map(np.any, jax.tree.leaves(params))) and np.any(found)
    if negatives == 0:
        scores = np.asarray(vectors @ retriever.item_embeddings(variables, catalogue).T)[..., 1 : ITEMS + 1]
        terms = [reference.cross_entropy(scores[b, p], targets[b, p] - 1) for b, p in np.argwhere(weights > 0)]
        np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("positions", [1, 3, None])
def test_seen_items_are_no_candidates(positions, before):
    """With `loss.exclude_seen`, at each of the last places: two softmaxes over what its window has not shown yet.

    Nor what came before the window, where the batch knows that.
    """
    retriever, variables = built(model__name="sasrec", loss__exclude_seen=True, eval__exclude_seen=True)
    catalogue, batch = make_catalogue(), make_batch()
    history, earlier = np.asarray(batch["history"]), np.random.default_rng(2).integers(0, ITEMS + 1, (5, 4))
    if before:
        batch = {**batch, "before": jnp.asarray(earlier, jnp.int32)}
    length = positions or history.shape[1]
    targets, weights = (np.asarray(a)[:, -length:] for a in next_items(batch))
    users = normal(1, *targets.shape, 2, 8)
    items = step_items(retriever.net, variables, catalogue, retriever.loss_config, batch)
    table, terms = np.asarray(retriever.encode_items(variables, catalogue)), []
    for b, p in np.argwhere(weights > 0):
        seen = history[b, : history.shape[1] - length + p + 1].tolist() + before * earlier[b].tolist()
        kept = [i for i in range(1, ITEMS + 1) if i == targets[b, p] or i not in seen]
        each = [reference.cross_entropy(table[kept] @ user, kept.index(targets[b, p])) for user in users[b, p]]
        terms.append(-np.log(np.mean(np.exp(-np.array(each)))))
    value = items.cross_entropy(*map(jnp.asarray, (users, targets, weights)))
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("merge", ["softmax_mean", "logsumexp"])
@pytest.mark.parametrize("own", [False, True])
def test_several_vectors_are_a_mixture_with_sampled_negatives(own, merge):
    """As each vector's own sampled loss, mixed: the same negatives for all of them."""
    changes = {"loss__negatives": 5, "loss__window_negatives": own, "loss__merge": merge}
    retriever, variables = built(model__name="sasrec", **changes)
    table = np.asarray(retriever.encode_items(variables, make_catalogue()))
    catalogue, batch = make_catalogue(), make_batch()
    targets, weights = next_items(batch)
    users = jnp.asarray(normal(1, *targets.shape, 3, 8))
    drawn = {"negatives": jnp.array([1, 4, 4, 7, 9]), "log_counts": jnp.linspace(-1, 0, 5)}
    items = step_items(retriever.net, variables, catalogue, retriever.loss_config, {**batch, **drawn})
    for b, p in np.argwhere(weights > 0):
        only = jnp.zeros_like(weights).at[b, p].set(1.0)
        each = [items.cross_entropy(users[:, :, m, None], targets, only) for m in range(3)]
        value = items.cross_entropy(users, targets, only)
        if merge == "softmax_mean":
            mixed = -np.log(np.mean(np.exp(-np.array(each))))
        else:  # a loss is the log of the sum over all, less the target's score
            scores = np.asarray(users[b, p] @ table[targets[b, p]])
            mixed = np.log(np.exp(scores + np.array(each)).sum()) - np.log(np.exp(scores).sum())
        np.testing.assert_allclose(value, mixed, rtol=1e-5)


def sampled_loss(row, negatives, before=(), **changes):
    """The cross-entropy at the last place of one window alone, with these negatives, each expected once."""
    retriever, variables = built(model__name="sasrec", loss__negatives=len(negatives), **changes)
    batch = {**make_batch(), "history": jnp.broadcast_to(jnp.array(row), (5, 6)), "target": jnp.full(5, 12)}
    drawn = {"negatives": jnp.array(negatives), "log_counts": jnp.zeros(len(negatives))}
    if before:
        drawn["before"] = jnp.broadcast_to(jnp.array(before), (5, len(before)))
    items = step_items(retriever.net, variables, make_catalogue(), retriever.loss_config, {**batch, **drawn})
    targets, weights = next_items(batch)
    only = jnp.zeros_like(weights).at[0, -1].set(1.0)
    return float(items.cross_entropy(jnp.asarray(normal(1, 5, 6, 1, 8)), targets, only))


def test_drawn_items_that_were_seen_are_no_negatives():
    """Where all are, the target is alone in its softmax."""
    changes = {"loss__window_negatives": False, "eval__exclude_seen": True}
    assert sampled_loss([1, 2, 3, 4, 5, 6], [2, 5], loss__exclude_seen=True, **changes) == 0
    assert sampled_loss([1, 2, 3, 4, 5, 6], [2, 5], loss__exclude_seen=False, **changes) > 0.01
    assert sampled_loss([1, 2, 3, 4, 5, 6], [2, 8], loss__exclude_seen=True, **changes) > 0.01
    assert sampled_loss([1, 2, 3, 4, 5, 6], [2, 8], [0, 8, 9], loss__exclude_seen=True, **changes) == 0
    assert sampled_loss([1, 2, 3, 4, 5, 6], [2, 8], [0, 8, 9], loss__exclude_seen=False, **changes) > 0.01


def test_the_items_of_the_window_are_negatives():
    """Beside those that are drawn, of which none is in the window here."""
    alone, with_window = (sampled_loss([1, 2, 3, 4, 5, 6], [8, 9], loss__window_negatives=own) for own in (False, True))
    assert with_window > alone + 0.01


def test_labels_are_smoothed():
    retriever, variables = built(model__name="sasrec", loss__label_smoothing=0.3)
    catalogue, batch = make_catalogue(), make_batch()
    targets, weights = next_items(batch)
    users, table = normal(1, *targets.shape, 1, 8), np.asarray(retriever.encode_items(variables, catalogue))
    items = step_items(retriever.net, variables, catalogue, retriever.loss_config, batch)
    terms = []
    for b, p in np.argwhere(weights > 0):
        scores = table[1 : ITEMS + 1] @ users[b, p, 0]
        each = [reference.cross_entropy(scores, i) for i in range(ITEMS)]
        terms.append(0.7 * each[targets[b, p] - 1] + 0.3 * np.mean(each))
    value = items.cross_entropy(jnp.asarray(users), targets, weights)
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("negatives", [0, 3])
def test_negatives_must_be_in_the_batch_where_they_are_wanted(negatives):
    retriever, variables = built(model__name="sasrec", loss__negatives=negatives)
    given = {} if negatives else {"negatives": jnp.array([1, 2, 3])}
    with pytest.raises(ValueError, match=f"loss.negatives={negatives}, loss.batch_negatives=0, but the batch brings"):
        retriever.loss(variables, make_catalogue(), {**make_batch(), **given}, jax.random.key(0))


def test_expected_item_by_hand():
    """Equal scores share evenly, a great one takes all; what is no item or was seen has no share."""
    table = jnp.array([[9.0, 9.0], [2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [9.0, 9.0]])
    is_item, queries = jnp.array([False, True, True, True, False]), jnp.array([[0.0, 0.0], [50.0, 0.0]])
    found = expected_item(queries, table, is_item, None, chunk=0)
    np.testing.assert_allclose(found, [[0, 2 / 3], [2, 0]], atol=1e-6)
    history = jnp.array([[0, 1]])
    found = expected_item(queries, table, is_item, Seen.of(history, 2), chunk=0)
    np.testing.assert_allclose(found, [[0, 2 / 3], [0, 2]], atol=1e-6)  # the first place has seen nothing yet


@pytest.mark.parametrize("chunk", [0, 4, 100])
@pytest.mark.parametrize("positions", [None, 1, 3])
def test_expected_item_against_a_loop(chunk, positions):
    """Value and gradient; `positions` None: nothing is left out."""
    history, table = np.asarray(make_batch()["history"]), normal(2, 16, 8)
    q = len(history) * (positions or 6)
    queries, is_item = normal(3, q, 8), (np.arange(16) > 0) & (np.arange(16) <= ITEMS)
    seen = Seen.of(jnp.asarray(history), positions) if positions else None
    rows = []
    for i, query in enumerate(queries):
        window, place = divmod(i, positions or 6)
        shown = history[window, : history.shape[1] - positions + place + 1] if positions else []
        kept = [j for j in range(16) if is_item[j] and j not in shown]
        weights = np.exp(table[kept] @ query - (table[kept] @ query).max())
        rows.append(weights / weights.sum() @ table[kept])

    def run(queries, chunk):
        return expected_item(jnp.asarray(queries), jnp.asarray(table), jnp.asarray(is_item), seen, chunk=chunk)

    np.testing.assert_allclose(run(queries, chunk), rows, rtol=1e-5, atol=1e-5)
    gradient, expected = (jax.grad(lambda a, c=c: jnp.square(run(a, c)).sum())(queries) for c in (chunk, 0))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_expected_item_where_all_was_seen():
    """Zero, and a gradient of zero."""
    seen = Seen.of(jnp.array([[1, 2]]), 1)

    def run(queries):
        return expected_item(queries, jnp.ones((3, 2)), jnp.array([False, True, True]), seen, chunk=0)

    queries = jnp.ones((1, 2))
    assert not np.any(run(queries)) and not np.any(jax.grad(lambda a: run(a).sum())(queries))
