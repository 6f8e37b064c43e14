"""Ranking metrics: a table by hand, a loop, collapsed models, divergence, intervals."""

import math

import numpy as np
import pytest
import reference_data as reference

from t2diff_jax.metrics import bootstrap_difference, group_means, mean_and_spread, ranking_metrics, recall_by


def test_table_by_hand():
    metrics = ranking_metrics(np.array([1.0, 2.0, 3.5, 11.0]), (1, 2, 10))
    expected = {
        "recall@1": 1 / 4,
        "recall@2": 2 / 4,
        "recall@10": 3 / 4,
        "mrr@1": 1 / 4,
        "mrr@2": (1 + 1 / 2) / 4,
        "mrr@10": (1 + 1 / 2 + 1 / 3.5) / 4,
        "ndcg@1": 1 / 4,
        "ndcg@2": (1 + 1 / math.log2(3)) / 4,
        "ndcg@10": (1 + 1 / math.log2(3) + 1 / math.log2(4.5)) / 4,
    }
    assert metrics == pytest.approx(expected) and list(metrics) == list(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_a_loop(dtype):
    ranks = 1 + np.random.default_rng(0).integers(0, 400, 300) / 2
    metrics = ranking_metrics(ranks.astype(dtype), (1, 5, 20, 1000))
    for k in (1, 5, 20, 1000):
        expected = reference.ranking_metrics(ranks, k)
        assert [metrics[f"{name}@{k}"] for name in ("recall", "mrr", "ndcg")] == pytest.approx(expected, rel=1e-5)
    assert metrics["recall@1000"] == 1.0


def test_metrics_grow_with_k_and_are_bounded_by_recall():
    ks = (1, 2, 5, 20, 100)
    metrics = ranking_metrics(1 + np.random.default_rng(1).exponential(20, 500), ks)
    for name in ("recall", "mrr", "ndcg"):
        values = [metrics[f"{name}@{k}"] for k in ks]
        assert values == sorted(values)
    assert all(metrics[f"mrr@{k}"] <= metrics[f"ndcg@{k}"] <= metrics[f"recall@{k}"] for k in ks)


def test_a_collapsed_model_scores_as_badly_as_chance():
    ranks = np.full(50, (1000 + 1) / 2)  # all scores equal: the mean rank, never a hit
    assert not any(ranking_metrics(ranks, (1, 10, 100)).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_is_an_error(bad):
    with pytest.raises(FloatingPointError, match="diverged"):
        ranking_metrics(np.array([1.0, bad]), (10,))


def test_no_targets():
    assert all(math.isnan(value) for value in ranking_metrics(np.zeros(0), (1, 10)).values())


def test_mean_and_spread():
    rows = [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0}]
    assert mean_and_spread(rows) == {"a": (3.0, pytest.approx(math.sqrt(7))), "b": (5.0, 0.0)}
    assert mean_and_spread(rows[:1]) == {"a": (1.0, 0.0), "b": (5.0, 0.0)}


def test_recall_by_group_by_hand():
    ranks, popularity = np.array([1, 30, 1, 30, 1, 1.0]), np.array([50, 2, 3, 1, 60, 70])
    # Least popular first: (1: miss, 2: miss), (3: hit, 50: hit), (60: hit, 70: hit).
    assert recall_by(popularity, ranks, 20, 3) == [0.0, 1.0, 1.0]
    assert recall_by(popularity, ranks, 20, 2) == [pytest.approx(1 / 3), 1.0]


def test_recall_by_group_does_not_depend_on_the_order_of_targets():
    """Of three targets of one value and one hit, two stand in the first half: two thirds of a hit of its three."""
    popularity, hits = np.array([1, 5, 5, 5, 9, 9]), np.array([False, True, False, False, True, True])
    for order in (np.arange(6), np.arange(6)[::-1], np.array([2, 4, 1, 0, 3, 5])):
        groups = recall_by(popularity[order], np.where(hits, 1.0, 99.0)[order], 20, 2)
        assert groups == pytest.approx([2 / 9, 7 / 9])


def test_recall_by_group_averages_to_the_recall():
    generator = np.random.default_rng(2)
    ranks, popularity = generator.integers(1, 100, 400).astype(float), generator.integers(0, 30, 400)
    groups = recall_by(popularity, ranks, 20, 10)
    assert np.mean(groups) == pytest.approx((ranks <= 20).mean())
    assert [math.isnan(value) for value in recall_by(popularity[:2], ranks[:2], 20, 4)] == [False] * 2 + [True] * 2


def made_pair(users, per_user, effect, seed):
    """Paired hits of two models: `b` at chance, `a` better by `effect`; a user's targets are alike."""
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), per_user)
    easy = generator.random(users)[user]
    return easy + effect + generator.normal(0, 0.5, len(user)), easy + generator.normal(0, 0.5, len(user)), user


def test_bootstrap_has_the_right_sign_and_finds_a_clear_difference():
    a, b, users = made_pair(500, 2, 0.2, 0)
    mean, low, high = bootstrap_difference(a, b, users, draws=500, seed=0)
    assert mean == pytest.approx((a - b).mean()) and 0 < low < mean < high
    swapped = bootstrap_difference(b, a, users, draws=500, seed=0)
    assert swapped == pytest.approx((-mean, -high, -low))


def test_bootstrap_covers_the_true_difference_at_its_level():
    covered = 0
    for seed in range(100):
        _, low, high = bootstrap_difference(*made_pair(100, 3, 0.1, seed), draws=200, seed=seed)
        covered += low <= 0.1 <= high
    assert 88 <= covered <= 100  # 95 expected, standard deviation 2.2


def test_bootstrap_draws_users_not_targets():
    generator = np.random.default_rng(0)
    user_effect = generator.normal(0, 1, 50)
    users = np.repeat(np.arange(50), 40)  # forty copies of one value per user carry no more than one
    a, b = user_effect[users], np.zeros(2000)
    _, low, high = bootstrap_difference(a, b, users * 7 + 3, draws=2000, seed=0)
    assert (high - low) / 2 == pytest.approx(1.96 * user_effect.std() / math.sqrt(50), rel=0.1)


def test_bootstrap_is_determined_by_its_seed():
    a, b, users = made_pair(50, 2, 0.1, 0)
    assert bootstrap_difference(a, b, users, draws=50, seed=1) == bootstrap_difference(a, b, users, draws=50, seed=1)
    assert bootstrap_difference(a, a, users, draws=50, seed=1) == (0.0, 0.0, 0.0)


def test_group_means_by_hand():
    assert group_means(np.array([5, 1, 3, 9]), 2) == [2.0, 7.0]
    assert [math.isnan(value) for value in group_means(np.array([5, 1]), 3)] == [False, False, True]
