"""The pre-ranker: network against numpy, gates, the loss by hand, gradients; ranks among candidates; the command."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny
from model_cases import (
    ITEMS,
    PLAIN,
    SIZES,
    drawn,
    float64,
    make_batch,
    make_catalogue,
    named_leaves,
    put,
    small_config,
)
from tiny import shared_compiles  # noqa: F401

from t2diff_jax.config_values import ConfigError
from t2diff_jax.models.cold import COLD, feature_groups
from t2diff_jax.preranking import Candidates, PreRanking, described, kept_groups, metrics_among, ranks_among
from t2diff_jax.types import PreRanker

CATALOGUE = make_catalogue()
BATCH = make_batch() | {"retrieved": -jnp.arange(20.0).reshape(5, 4) / 7}
MODEL = small_config().model
GROUPS = feature_groups(MODEL, SIZES)
CHOSEN = jnp.asarray(np.random.default_rng(5).integers(1, ITEMS + 1, (5, 4)), jnp.int32)


def make(groups=GROUPS, sizes=SIZES):
    config = small_config(cold__hidden=(6, 5))
    return COLD(config.cold, config.model, sizes, groups)


@pytest.fixture(scope="module")
def cold():
    """The pre-ranker with all groups, its variables, compiled (variables, items) -> (scores, gates)."""
    model = make()
    variables = {"params": drawn(model.init, CATALOGUE, BATCH, CHOSEN)}
    both = jax.jit(lambda v, items: model.net.apply(v, CATALOGUE, BATCH, items))
    return types.SimpleNamespace(model=model, variables=variables, both=both)


def test_groups_follow_the_data():
    assert isinstance(make(), PreRanker)
    assert GROUPS[:7] == ("history", "session", "last", "user", "item", "category", "content")
    assert feature_groups(MODEL, PLAIN) == (
        "history",
        "session",
        "last",
        "item",
        "history_cross",
        "session_cross",
        "last_cross",
    )


def test_a_feature_without_room_is_no_group():
    """Nor is it taken for another: categories of width 0 beside content."""
    config = small_config(model__category_dim=0, cold__hidden=(6, 5))
    groups = feature_groups(config.model, SIZES)
    assert "category" not in groups and "content" in groups
    narrow = COLD(config.cold, config.model, SIZES, groups)
    variables = narrow.init(jax.random.key(0), CATALOGUE, BATCH, CHOSEN)
    assert np.isfinite(narrow.score(variables, CATALOGUE, BATCH, CHOSEN)).all()
    assert variables["params"]["items"]["content"]["kernel"].shape == (3, 2)


def test_scores_and_gates_against_numpy(cold):
    scores, gates = map(np.asarray, cold.both(cold.variables, CHOSEN))
    p = float64(cold.variables["params"])
    table = np.asarray(
        cold.model.net.apply(cold.variables, CATALOGUE, method=lambda net, c: net.items.table(c)), np.float64
    )

    def mean(rows):
        return rows.mean(axis=0) if len(rows) else np.zeros(8)

    for b, c in np.ndindex(5, 4):
        history = np.asarray(BATCH["history"])[b]
        x, e = (reference.layer_norm(p["item_norm"], table[ids]) for ids in (history, int(CHOSEN[b, c])))
        there = np.flatnonzero(history)
        session = [j for j in there if j >= 6 - int(BATCH["session_length"][b])]
        features = np.asarray(BATCH["user_features"])[b]
        of_user = [mean(x[there]), mean(x[session]), x[5] * (history[5] > 0)]
        user = np.concatenate([p["users"][f"table_{i}"][f] for i, f in enumerate(features)])
        blocks = [*of_user, user, e[:4], e[4:6], e[6:], *(part * e for part in of_user)]
        mapped = [block @ p[f"map_{name}"]["kernel"] for block, name in zip(blocks, GROUPS, strict=True)]
        gate = 1 / (1 + np.exp(-(sum(m[6:] for m in mapped) + p["gate_bias"])))
        h = np.maximum(sum(g * m[:6] for g, m in zip(gate, mapped, strict=True)) + p["bias"], 0)
        h = np.maximum(h @ p["layer_1"]["kernel"] + p["layer_1"]["bias"], 0)
        np.testing.assert_allclose(gates[b, c], gate, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            scores[b, c], np.asarray(BATCH["retrieved"])[b, c] + h @ p["out"]["kernel"][:, 0], rtol=2e-3, atol=2e-4
        )


def test_an_item_is_scored_by_itself(cold):
    """Neither the company of other candidates nor the target nor padding's own vectors change a score."""
    scores, _ = cold.both(cold.variables, CHOSEN)
    for column in range(4):
        batch = BATCH | {"retrieved": BATCH["retrieved"][:, [column]]}
        alone, _ = jax.jit(lambda v, b, items: cold.model.net.apply(v, CATALOGUE, b, items))(
            cold.variables, batch, CHOSEN[:, [column]]
        )
        np.testing.assert_allclose(alone[:, 0], scores[:, column], rtol=1e-4, atol=1e-5)
    garbage = put(cold.variables, ("params", "items", "item_table"), lambda x: jnp.asarray(x).at[0].set(1e6))
    np.testing.assert_array_equal(cold.both(garbage, CHOSEN)[0], scores)


def test_loss_by_hand_and_gradients(cold):
    """The first item's share among those that are candidates."""
    items = CHOSEN.at[0, 2].set(0)

    def loss(params):
        return cold.model.loss({"params": params}, CATALOGUE, BATCH, items)

    value, gradient = jax.jit(jax.value_and_grad(loss))(cold.variables["params"])
    scores = np.asarray(cold.both(cold.variables, CHOSEN)[0], np.float64)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds[0, 2] = 0
    np.testing.assert_allclose(value, -np.log(odds[:, 0] / odds.sum(axis=1)).mean(), rtol=1e-4)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-7), name


def test_before_it_has_learned_scores_are_the_retrievers(cold):
    start = jax.jit(cold.model.init)(jax.random.key(0), CATALOGUE, BATCH, CHOSEN)
    np.testing.assert_array_equal(cold.both(start, CHOSEN)[0], BATCH["retrieved"])


def test_fewer_groups_are_a_smaller_network(cold):
    few = make(("last", "item", "last_cross"))
    params = few.init(jax.random.key(0), CATALOGUE, BATCH, CHOSEN)["params"]
    assert {name for name in params if name.startswith("map_")} == {"map_last", "map_item", "map_last_cross"}
    assert params["map_item"]["kernel"].shape == (4, 6 + 3) and "users" not in params
    gates = few.gates({"params": params}, CATALOGUE, BATCH, CHOSEN)
    assert gates.shape == (3,) and np.all((gates > 0) & (gates < 1))


def test_kept_groups():
    assert kept_groups({"a": 0.2, "b": 0.9, "c": 0.5}, 2) == ("b", "c")


def test_ranks_among_candidates():
    """By hand: second by score; tied with one; not among the first two; a candidate that is none."""
    ids = np.array([[4, 7, 9], [4, 7, 9], [4, 7, 9], [7, 0, 0]])
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 2.0], [1.0, 2.0, 3.0], [-5.0, 9.0, 9.0]])
    taken = np.array([7, 7, 9, 7])
    np.testing.assert_array_equal(ranks_among(ids, scores, taken, 3), [2, 1.5, 1, 1])
    ranks = ranks_among(ids, scores, taken, 2)
    np.testing.assert_array_equal(ranks[[0, 1, 3]], [1, 1, 1])
    assert ranks[2] > 1e9
    assert np.isnan(ranks_among(ids, np.full_like(scores, np.nan), taken, 3)).all()


def test_candidates_have_no_metrics_beyond_their_number():
    """Nor does the table show one; and what the retriever ties is tied, as in its own evaluation."""
    found = Candidates(None, np.array([[7, 4, 9]]), np.array([[0.0, 0.0, -1.0]]))
    measured = [metrics_among(found, found.scores, np.array([7]), m, (1, 2, 10)) for m in (1, 2)]
    assert [list(metrics) for metrics in measured] == [
        ["recall@1", "mrr@1", "ndcg@1"],
        ["recall@1", "recall@2", "mrr@1", "mrr@2", "ndcg@1", "ndcg@2"],
    ]
    assert measured[1]["recall@1"] == 0 and measured[1]["mrr@2"] == 1 / 1.5
    row = {"candidates": 10, "recall@10": 0.5, "ms": 1.0, "pairs_per_s": 10.0}
    result = {"split": "test", "retriever": {"recall@10": 0.25, "recall@20": 0.75}}
    *_, line, _, _ = described(result | {"preranker": [{"groups": ["a"], "gates": {}, "rows": [row]}]}).splitlines()
    assert line.split() == ["COLD,", "1", "groups", "10", "0.5000", "1.000", "10"]


def logged_by_hand(**changes):
    """(pre-ranker, its log): for every request four candidates, the taken second, the last none; scores -id / 10."""
    parts = tiny.build((1, 1), cold__requests=400, cold__negatives=12, cold__hidden=(8,), **changes)
    pre = PreRanking(parts, parts.initial_state().evaluation_variables())
    targets = pre.training_requests()
    taken = parts.log.items[parts.log.offsets[targets.users] + targets.positions]
    ids = np.stack([np.where(taken == 9, 3, 9), taken, np.where(taken == 8, 4, 8), np.zeros_like(taken)], axis=1)
    return pre, Candidates(targets, ids.astype(np.int32), np.where(ids > 0, -ids / 10, 0).astype(np.float32))


def test_a_training_batch_has_the_taken_first_and_every_item_beside_its_own_score():
    pre, log = logged_by_hand()
    batch, items = pre._training_batch(log, 0)
    retrieved, items = np.asarray(batch["retrieved"]), np.asarray(items)
    assert items.shape == retrieved.shape == (pre.experiment.config.cold.batch_size, 13) and (items[:, 0] > 0).all()
    np.testing.assert_allclose(retrieved[items > 0], -items[items > 0] / 10, rtol=1e-6)
    assert (items[:, 1:] != items[:, :1]).all() and (items[:, 1:] > 0).sum(axis=1).max() > 4


def pairs(targets):
    return set(zip(targets.users.tolist(), targets.positions.tolist(), strict=True))


def test_what_says_when_to_stop_is_neither_learned_from_nor_measured():
    pre, _ = logged_by_hand(cold__later=5)
    split = pre.experiment.split
    validation = {(user, position) for user, position in pairs(split.validation) if position}
    to_stop, to_measure = pre.later_requests("test")
    assert len(to_stop) == 5 < len(validation) and pairs(to_stop) <= validation
    assert pairs(to_measure) == {(user, position) for user, position in pairs(split.test) if position}
    to_stop, to_measure = pre.later_requests("validation")
    assert len(to_stop) == 5 and pairs(to_stop) | pairs(to_measure) <= validation
    users, others = np.unique(to_stop.users), np.unique(to_measure.users)
    every = len({user for user, _ in validation})
    assert not np.intersect1d(users, others).size and len(others) == every - every // 2
    learned = pairs(pre.training_requests())
    assert not learned & (pairs(to_stop) | pairs(to_measure) | pairs(split.test))


def test_one_user_cannot_stop_and_measure():
    pre, _ = logged_by_hand()
    split = pre.experiment.split
    one = split.validation.users == split.validation.users[-1]
    alone = dataclasses.replace(split, validation=split.validation.at(one))
    pre = dataclasses.replace(pre, experiment=dataclasses.replace(pre.experiment, split=alone))
    with pytest.raises(ConfigError, match="no two users, to stop by"):
        pre.later_requests("validation")
    assert len(pre.later_requests("test")[0])


def test_every_later_request_is_looked_at():
    pre, log = logged_by_hand()
    parts = pre._batches_to_look_at(log.at(np.arange(100)))
    found = np.concatenate([np.stack([batch["user"], batch["position"]], axis=1) for batch, _ in parts])
    expected = np.stack([log.targets.users, log.targets.positions], axis=1)
    np.testing.assert_array_equal(found, expected[np.resize(np.arange(100), 128)])


def trained(pre, learning, later):
    """The pre-ranker's variables, its loss on the later requests, and the retriever's."""
    cold, variables = pre.train(("last", "item", "last_cross"), learning, later)
    parts = pre._batches_to_look_at(later)
    start = {"params": pre._start(cold, parts[0]) | {"items": variables["params"]["items"]}}
    loss = jax.jit(cold.loss)
    losses = ([loss(v, pre.experiment.catalogue, *part) for part in parts] for v in (variables, start))
    return variables, *map(np.mean, losses)


def test_what_was_best_on_later_requests_stays():
    """With many steps at a high rate the loss there rises again: what is kept is no worse than after the first look."""
    losses = {}
    for steps in (10, 20):
        pre, log = logged_by_hand(cold__steps=steps, cold__check_every=10, cold__learning_rate=0.05)
        variables, losses[steps], _ = trained(pre, log.at(np.arange(200)), log.at(np.arange(200, 300)))
        items = pre.retriever_variables["params"]["items"]
        np.testing.assert_array_equal(variables["params"]["items"]["item_table"], items["item_table"])
    assert losses[20] <= losses[10] + 1e-6


def test_where_nothing_learned_helps_the_retrievers_order_stays():
    """At a rate at which every step does harm, behind a retriever that likes the taken best."""
    pre, log = logged_by_hand(cold__steps=20, cold__check_every=10, cold__learning_rate=3.0)
    log = log._replace(scores=np.where(log.ids == pre.targets_of(log)[:, None], 2, 0).astype(np.float32))
    _, loss, of_retriever = trained(pre, log.at(np.arange(200)), log.at(np.arange(200, 300)))
    assert loss == of_retriever < 1


def test_candidates_are_scored_lot_by_lot():
    """More than fit a batch, each with its own window and the retriever's own scores."""
    pre, log = logged_by_hand()
    found = log.at(np.arange(24))
    assert pre.evaluator.batch_rows == 16
    cold, variables = pre.train(("last", "item", "last_cross"), log.at(np.arange(200)), log.at(np.arange(200, 264)))
    together = jax.jit(cold.score)(
        variables, pre.experiment.catalogue, pre._batch(found, found.scores), jnp.asarray(found.ids)
    )
    np.testing.assert_allclose(pre.scores(cold, variables, found), together, rtol=1e-5, atol=1e-6)


def test_the_requests_that_are_learned_from_hold_what_was_taken():
    pre, log = logged_by_hand()
    missed = np.arange(len(log.ids)) % 3 == 0
    ids = np.where(missed[:, None] & (log.ids == pre.targets_of(log)[:, None]), 0, log.ids)
    kept = pre.with_the_taken(log._replace(ids=ids))
    assert pairs(kept.targets) and len(kept.ids) == (~missed).sum()
    np.testing.assert_array_equal(kept.ids, log.ids[~missed])


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """What the command wrote behind a tiny retriever, and what it said."""
    request.getfixturevalue("shared_compiles")
    workdir = tmp_path_factory.mktemp("run")
    tiny.succeed("train.py", workdir, "--config.model.name=sasrec")
    flags = ["--config.model.name=sasrec", "--config.cold.requests=300", "--config.cold.candidates=20"]
    flags += ["--config.cold.cutoffs=(5,20)", "--config.cold.steps=60", "--config.cold.check_every=20"]
    flags += ["--config.cold.keep=(2,)", "--config.cold.hidden=(8,)"]
    said = tiny.succeed("prerank.py", workdir, *flags)
    again = tiny.succeed("prerank.py", workdir, *flags)
    return types.SimpleNamespace(result=json.loads((workdir / "prerank.json").read_text()), said=said, again=again)


def test_the_command_measures_every_cutoff_and_prunes(run):
    whole, few = run.result["preranker"]
    assert [row["candidates"] for row in whole["rows"]] == [5, 20]
    assert len(few["groups"]) == 2 and set(few["groups"]) < set(whole["groups"])
    lowest = min(whole["gates"][name] for name in few["groups"])
    assert all(value <= lowest for name, value in whole["gates"].items() if name not in few["groups"])
    assert "on later requests, after" in run.said and "COLD, 2 groups" in run.said and "mean gates:" in run.said


def test_what_is_not_retrieved_is_not_found(run):
    """With M candidates Recall@M is the retriever's, whatever the order; beyond M nothing is said."""
    retriever = run.result["retriever"]
    for row in run.result["preranker"][0]["rows"]:
        if row["candidates"] == 5:
            np.testing.assert_allclose(row["recall@5"], retriever["recall@5"])
            assert "recall@10" not in row
        assert row["ms"] > 0 and row["pairs_per_s"] > 0


def test_the_same_command_gives_the_same_metrics(run):
    def metrics(text):
        return [line[:51] for line in text.splitlines() if line.startswith(("COLD", "retriever"))]

    assert metrics(run.said) == metrics(run.again) and len(metrics(run.said)) == 5
