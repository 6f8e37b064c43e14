"""Full-catalogue evaluation with a retriever of fixed vectors: against a loop, whatever the batches; the report."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_data as reference
from toy import make_log, random_log

from configs import base
from t2diff_jax import rng
from t2diff_jax.config import MeshConfig
from t2diff_jax.config_values import from_mapping
from t2diff_jax.data.batches import Windows
from t2diff_jax.data.catalogue import make_catalogue
from t2diff_jax.data.splits import Targets, temporal
from t2diff_jax.evaluate import Evaluator, TargetScores
from t2diff_jax.metrics import ranking_metrics
from t2diff_jax.report import coverage, recommendations_text, report, summarise, summarise_slot
from t2diff_jax.sharding import make_mesh, put_catalogue
from t2diff_jax.writer import write_json

WINDOWS = Windows(length=5, session_length=3, session_gap=0, lags=True)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """One vector per user row and one per item, plus noise that depends on (key, user, position) alone."""

    noise: float = 0.0

    def encode_user(self, variables, catalogue, batch, key):
        vectors = variables["users"][batch["user"]]
        keys = rng.per_user(key, batch["user"], batch["position"])
        vectors = vectors + self.noise * jax.vmap(lambda k: jax.random.normal(k, vectors.shape[1:]))(keys)
        return vectors, jnp.ones(vectors.shape[:2], bool)

    def encode_items(self, variables, catalogue):
        return variables["items"]


@functools.cache
def setup(noise=0.0, **changes):
    """An evaluator, its variables and its test targets, some without history. Cached: it holds compiled code."""
    log = random_log(users=40, n_items=30, longest=20)
    config = base.get_config()
    config.eval.update(batch_size=16, ks=(1, 5, 10), block=16)
    config.eval.select = "ndcg@10"
    config.eval.update(changes)
    split = temporal(log, 0.6, 0.8)
    mesh = make_mesh(MeshConfig(-1, 1))
    catalogue = put_catalogue(mesh, make_catalogue(log, split, 8))
    evaluator = Evaluator(Fixed(noise), catalogue, log, WINDOWS, from_mapping(config).eval, mesh, 0)
    generator = np.random.default_rng(1)
    users, items = generator.normal(size=(log.n_users, 2, 4)), generator.normal(size=(catalogue.n_rows, 4))
    variables = {"users": users.astype(np.float32), "items": items.astype(np.float32)}
    return evaluator, jax.device_put(variables), split.test


def target_items(log, targets):
    return log.items[log.offsets[targets.users] + targets.positions]


def naive(evaluator, variables, targets, k):
    """(ranks, top-k ids) one target at a time."""
    log, merge = evaluator.log, evaluator.config.merge
    vectors = np.asarray(variables["users"])[targets.users]
    seen = None
    if evaluator.config.exclude_seen:
        starts = log.offsets[targets.users]
        seen = [log.items[start : start + p] for start, p in zip(starts, targets.positions, strict=True)]
    all_valid, items = np.ones(vectors.shape[:2], bool), np.asarray(variables["items"])
    scores = reference.score_matrix(vectors, all_valid, items, 30, merge, seen)
    return reference.ranks(scores, target_items(log, targets), seen), reference.top_k(scores, k, seen)[1]


@pytest.mark.parametrize(("exclude_seen", "merge"), [(False, "max"), (True, "max"), (True, "softmax_mean")])
def test_ranks_and_recommendations_against_a_loop(exclude_seen, merge):
    evaluator, variables, targets = setup(exclude_seen=exclude_seen, merge=merge)
    assert len(targets) % 16 and (targets.positions == 0).any()
    ranks = evaluator.score_targets(variables, targets, 2).ranks
    expected, expected_ids = naive(evaluator, variables, targets, 30)
    assert ranks.shape == (2, len(targets)) and ranks.dtype == np.float32
    np.testing.assert_array_equal(ranks[0], expected)  # every target once, in order
    np.testing.assert_array_equal(ranks[1], expected)  # without noise the key does not matter
    scores, ids = evaluator.recommend(variables, targets, 30)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(np.isfinite(scores), ids > 0)


def had_before(log, targets):
    """Whether each target's item is among the earlier ones of its user."""
    starts = log.offsets[targets.users]
    pairs = zip(target_items(log, targets), starts, targets.positions, strict=True)
    return np.array([item in log.items[start : start + p] for item, start, p in pairs])


def test_excluding_seen_items_can_only_lift_a_target_but_those_that_are_excluded():
    ranks = {}
    for exclude in (False, True):
        evaluator, variables, targets = setup(exclude_seen=exclude, merge="max")
        ranks[exclude] = evaluator.score_targets(variables, targets, 1).ranks[0]
    had = had_before(evaluator.log, targets)
    assert had.any() and (ranks[True][had] == 31).all()
    lifted = ranks[False][~had] - ranks[True][~had]
    assert (lifted >= 0).all() and lifted.any()


def test_every_noise_key_gives_a_row():
    evaluator, variables, targets = setup(noise=0.5, exclude_seen=True)
    ranks = evaluator.score_targets(variables, targets, 3).ranks
    assert ranks.shape == (3, len(targets))
    assert (ranks[0] != ranks[1]).any() and (ranks[1] != ranks[2]).any()
    np.testing.assert_array_equal(ranks[:2], evaluator.score_targets(variables, targets, 2).ranks)
    other = dataclasses.replace(evaluator, seed=1)
    assert (other.score_targets(variables, targets, 1).ranks[0] != ranks[0]).any()


def test_the_result_does_not_depend_on_batches_and_order():
    evaluator, variables, targets = setup(noise=0.5, exclude_seen=True)
    ranks, (_, ids) = evaluator.score_targets(variables, targets, 2).ranks, evaluator.recommend(variables, targets, 5)
    order = np.random.default_rng(0).permutation(len(targets))
    shuffled = Targets(targets.users[order], targets.positions[order])
    for size in (1, 500):  # 1 is rounded up to the 8 devices
        other = dataclasses.replace(evaluator, config=dataclasses.replace(evaluator.config, batch_size=size))
        np.testing.assert_array_equal(other.score_targets(variables, shuffled, 2).ranks, ranks[:, order])
        np.testing.assert_array_equal(other.recommend(variables, shuffled, 5)[1], ids[order])


def test_exported_vectors_score_as_the_evaluator_does():
    evaluator, variables, targets = setup(noise=0.5)
    items, users, mask = evaluator.vectors(variables, targets)
    assert len(items) == evaluator.catalogue.n_items + 1 and users.shape[:2] == mask.shape and mask.all()
    scores = np.einsum("bmu,nu->bmn", users, items).max(axis=1)
    best, ids = evaluator.recommend(variables, targets, 5)
    np.testing.assert_allclose(np.take_along_axis(scores, ids, axis=1), best, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sort(scores[:, 1:], axis=1)[:, :-6:-1], best, rtol=1e-5, atol=1e-5)


def test_a_nan_score_surfaces():
    evaluator, variables, targets = setup(exclude_seen=False, merge="max")
    variables = variables | {"users": variables["users"].at[targets.users[0]].set(np.nan)}
    with pytest.raises(FloatingPointError, match="diverged"):
        summarise(evaluator.score_targets(variables, targets, 1), Targets(targets.users, targets.positions + 1), (5,))


def test_summarise_leaves_out_targets_without_history():
    targets = Targets(np.array([0, 1, 2], np.int32), np.array([0, 3, 1], np.int32))
    ranks, losses = np.array([[1, 1, 9], [1, 9, 9]], np.float32), np.array([[8, 1, 2], [8, 2, 3]], np.float32)
    result = summarise(TargetScores(ranks, losses), targets, (5,))
    assert result["recall@5"] == (0.25, pytest.approx(np.std([0.5, 0], ddof=1)))
    assert result["mrr@5"][0] == 0.25
    assert result["log_loss"] == (2.0, pytest.approx(np.std([1.5, 2.5], ddof=1)))
    assert "log_loss" not in summarise(TargetScores(ranks, None), targets, (5,))


def test_coverage_by_hand():
    recommended = np.array([[1, 2, 0], [1, 3, 4], [2, 1, 0]])
    assert coverage(recommended, 8, (1, 2, 3, 100)) == {
        "coverage@1": 2 / 8,
        "coverage@2": 3 / 8,
        "coverage@3": 4 / 8,
        "coverage@100": 4 / 8,
    }


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_report(exclude_seen, tmp_path):
    evaluator, variables, targets = setup(exclude_seen=exclude_seen, merge="max")
    ks, warm = evaluator.config.ks, targets.positions > 0
    scores = evaluator.score_targets(variables, targets, 2)
    ranks, losses = scores.ranks, scores.log_loss[0]
    counts = np.asarray(evaluator.catalogue.counts)
    result = report(evaluator, variables, targets, scores, counts)
    expected = ranking_metrics(ranks[0][warm], ks) | {"log_loss": losses[warm].mean()}
    assert {name: value["mean"] for name, value in result["metrics"].items()} == pytest.approx(expected)
    assert all(value["spread"] == 0 for value in result["metrics"].values())
    cold = ranking_metrics(ranks[0][~warm], ks) | {"log_loss": losses[~warm].mean()}
    assert {n: v["mean"] for n, v in result["metrics_without_history"].items()} == pytest.approx(cold)
    assert result["targets"] == warm.sum() and result["targets_without_history"] == (~warm).sum() > 0
    assert result["users"] == len(set(targets.users[warm].tolist()))
    assert (result["catalogue"], result["noise_keys"]) == (30, 2)
    assert result["seen_items_excluded"] is exclude_seen
    had = had_before(evaluator.log, targets)[warm].sum()
    assert had > 0 and result["targets_seen_before"] == had * exclude_seen
    _, ids = naive(evaluator, variables, targets, 10)
    assert result["coverage"] == coverage(ids[warm], 30, ks)
    deciles = result["recall@20_by_popularity_decile"]
    assert len(deciles) == 10 and np.mean(deciles) == pytest.approx((ranks[0][warm] <= 20).mean(), abs=0.05)
    assert json.loads(json.dumps(result)) == result
    write_json(tmp_path / "eval.json", result)
    assert json.loads((tmp_path / "eval.json").read_text()) == result


def test_report_where_every_target_has_a_history():
    evaluator, variables, targets = setup(exclude_seen=False, merge="max")
    warm = targets.positions > 0
    targets = Targets(targets.users[warm], targets.positions[warm])
    scores = evaluator.score_targets(variables, targets, 1)
    result = report(evaluator, variables, targets, scores, np.asarray(evaluator.catalogue.counts))
    assert result["targets_without_history"] == 0 and "metrics_without_history" not in result


@dataclasses.dataclass(frozen=True)
class Generating(Fixed):
    """Its generated items are the first two user vectors."""

    silent: bool = False

    def generate_items(self, variables, catalogue, batch, key):
        return None if self.silent else variables["users"][batch["user"]]

    def denoise_items(self, variables, catalogue, batch, key, r):
        return None if self.silent else variables["items"][batch["target"]] * r

    def item_embeddings(self, variables, catalogue):
        return variables["items"]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_slot_quality_against_a_loop(exclude_seen):
    evaluator, variables, targets = setup(exclude_seen=exclude_seen, merge="max")
    assert evaluator.slot_quality(variables, targets) is None
    evaluator = dataclasses.replace(evaluator, retriever=Generating())
    quality = evaluator.slot_quality(variables, targets)
    log, items = evaluator.log, np.asarray(variables["items"])
    first = np.asarray(variables["users"])[targets.users, 0]
    starts = log.offsets[targets.users]
    last_ids = np.where(targets.positions > 0, log.items[starts + np.maximum(targets.positions - 1, 0)], 0)
    last, target = items[last_ids], items[target_items(log, targets)]

    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    np.testing.assert_allclose(quality["cosine"], cosine(first, target), atol=1e-5)
    np.testing.assert_allclose(quality["cosine_of_last"], cosine(last, target), atol=1e-5)
    np.testing.assert_allclose(quality["square_error"], np.square(first - target).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(quality["square_error_of_last"], np.square(last - target).mean(-1), rtol=1e-5)
    seen = [log.items[s : s + p] for s, p in zip(starts, targets.positions, strict=True)] if exclude_seen else None
    scores = reference.score_matrix(first[:, None], np.ones((len(first), 1), bool), items, 30, "max")
    np.testing.assert_array_equal(quality["rank"], reference.ranks(scores, target_items(log, targets), seen))
    result = summarise_slot(quality, targets, (1, 5))
    warm = targets.positions > 0
    assert result["as_query"] == ranking_metrics(quality["rank"][warm], (1, 5))
    assert result["rms_error"] == pytest.approx(np.sqrt(quality["square_error"][warm].mean()), rel=1e-5)
    assert result["cosine_of_last"] == pytest.approx(quality["cosine_of_last"][warm].mean(), rel=1e-4)
    scores = TargetScores(quality["rank"][None], None)
    told = report(evaluator, variables, targets, scores, np.asarray(evaluator.catalogue.counts))
    assert told["slot"] == result | {"as_query": told["slot"]["as_query"]} and json.loads(json.dumps(told)) == told
    silent = dataclasses.replace(evaluator, retriever=Generating(silent=True))
    assert silent.slot_quality(variables, targets) is None


def test_denoising_quality_by_hand():
    """A generator that returns r times the target."""
    evaluator, variables, targets = setup(exclude_seen=False, merge="max")
    assert evaluator.denoising_quality(variables, targets, [1]) == []
    rows = dataclasses.replace(evaluator, retriever=Generating()).denoising_quality(variables, targets, [1, 3])
    target = np.asarray(variables["items"])[target_items(evaluator.log, targets)][targets.positions > 0]
    assert [row["r"] for row in rows] == [1, 3] and [row["cosine"] for row in rows] == pytest.approx([1, 1], abs=1e-5)
    assert [row["rms_error"] for row in rows] == pytest.approx([0, 2 * np.sqrt(np.square(target).mean())], rel=1e-5)
    silent = dataclasses.replace(evaluator, retriever=Generating(silent=True))
    assert silent.denoising_quality(variables, targets, [1]) == []


def test_recommendations_text():
    titles = np.array(["", "Heat", "Up", "Alien", "Big", "Jaws", "Fargo", "Babe"])
    log = make_log([[1, 2], [3, 1, 2, 4, 5, 6, 7]], titles=titles)
    targets = Targets(np.array([1, 0], np.int32), np.array([6, 0], np.int32))
    text = recommendations_text(log, targets, np.array([[5, 7], [2, 0]]))
    assert text.splitlines() == [
        "user 1, after 6 behaviours",
        "  last:  Heat [0]; Up [1]; Big [3]; Jaws [4]; Fargo [5]",
        "  next:  Babe [6]",
        "     1.  Jaws [4]",
        "     2.  Babe [6]   <- next",
        "",
        "user 0, after 0 behaviours",
        "  last:  ",
        "  next:  Heat [0]",
        "     1.  Up [1]",
    ]
    now = recommendations_text(log, Targets(np.array([1], np.int32), np.array([7], np.int32)), np.array([[1, 7]]))
    assert now.splitlines()[0] == "user 1, after 7 behaviours" and now.splitlines()[2] == "     1.  Heat [0]"
    bare = recommendations_text(dataclasses.replace(log, titles=None), targets.first(1), np.array([[5, 7]]))
    assert "last:  0; 1; 3; 4; 5" in bare and "2.  6   <- next" in bare


@pytest.mark.parametrize("search", [{"search": "bfloat16"}, {"search": "int8"}, {"search_recall": 0.5}])
def test_a_search_at_less_precision_says_what_it_finds(search):
    """Metrics are those of the exact scores; the report tells how many of the best are recommended."""
    exact, variables, targets = setup()
    coarse = setup(**search)[0]
    np.testing.assert_array_equal(*(e.score_targets(variables, targets, 1).ranks for e in (exact, coarse)))
    _, ids = coarse.recommend(variables, targets, 10)
    assert exact.search_recall(variables, targets, ids) is None
    found = coarse.search_recall(variables, targets, ids)
    best = exact.recommend(variables, targets, 10)[1]
    shares = [np.isin(a[a > 0], b).sum() for a, b in zip(best, ids, strict=True)]
    assert found == pytest.approx(np.sum(shares) / (best > 0).sum()) and found > 0.9
    read = coarse._build_searched(variables, coarse.catalogue).coarse
    assert (read is None) == ("search" not in search) and (read is None or read.blocks.dtype == search["search"])
