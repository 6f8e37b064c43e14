"""The made log: repeatable, well formed, and worth learning from."""

import dataclasses

import numpy as np
import pytest
from data_files import data_config

from t2diff_jax.config import SyntheticConfig
from t2diff_jax.data.log import DataError
from t2diff_jax.data.sources import load_log
from t2diff_jax.data.sources.synthetic import HOUR, SHORTEST, make_log

SIZE = SyntheticConfig(seed=0, n_users=600, n_items=300, categories=6, mean_length=60)


@pytest.fixture(scope="module")
def log():
    return make_log(SIZE)


def test_same_seed_same_log(log):
    assert make_log(SIZE).digest() == log.digest()
    assert make_log(dataclasses.replace(SIZE, seed=1)).digest() != log.digest()


def test_sizes_features_and_titles(log):
    lengths = np.diff(log.offsets)
    assert log.n_users == SIZE.n_users and log.n_items <= SIZE.n_items
    assert lengths.min() >= SHORTEST and abs(lengths.mean() - SIZE.mean_length) < 5
    counts = (log.categories[1:] > 0).sum(axis=1)
    assert set(counts.tolist()) == {1, 2, 3} and log.categories.max() == SIZE.categories
    assert all(len(set(row[row > 0])) == (row > 0).sum() for row in log.categories)
    first = log.category_names[log.categories[7, 0] - 1]
    assert log.titles[7] == f"{first} item {log.item_ids[7]}"
    assert log.user_feature_names == ("cohort", "region")
    assert (log.user_features >= 1).all() and (log.user_features < log.user_feature_sizes).all()


def test_time_comes_in_sessions_and_popularity_is_skewed(log):
    same_user = np.ones(len(log.times) - 1, bool)
    same_user[log.offsets[1:-1] - 1] = False
    gaps = np.diff(log.times)[same_user]
    short = gaps < HOUR
    assert 0.8 < short.mean() < 0.95 and np.median(gaps[short]) < 300 and np.median(gaps[~short]) > 6 * HOUR
    counts = np.sort(np.bincount(log.items))[::-1]
    assert counts[:30].sum() > 0.25 * counts.sum()


def test_sessions_stay_near_one_category(log):
    main = log.categories[log.items, 0]
    gaps = np.diff(log.times)
    same_user = np.ones(len(gaps), bool)
    same_user[log.offsets[1:-1] - 1] = False
    stays = (main[1:] == main[:-1])[same_user]
    assert stays[gaps[same_user] < HOUR].mean() > 0.9 > 0.7 > stays[gaps[same_user] >= HOUR].mean()


def test_counting_transitions_beats_popularity_threefold(log):
    users = np.repeat(np.arange(log.n_users), np.diff(log.offsets))
    held_out = np.random.default_rng(1).random(log.n_users) < 0.2
    train = ~held_out[users]
    popular = np.bincount(log.items[train], minlength=log.n_items + 1)
    pairs = train[1:] & (users[1:] == users[:-1])
    counts = np.zeros((log.n_items + 1,) * 2)
    np.add.at(counts, (log.items[:-1][pairs], log.items[1:][pairs]), 1)
    target = log.items[log.offsets[1:] - 1][held_out]
    before = log.items[log.offsets[1:] - 2][held_out]

    def recall(scores, k=20):
        return (np.sum(scores > scores[np.arange(len(target)), target][:, None], axis=1) < k).mean()

    by_popularity = recall(np.broadcast_to(popular, (len(target), len(popular))))
    assert recall(counts[before] + 1e-6 * popular) > 3 * by_popularity


def test_filters_and_bad_sizes():
    config = data_config(
        "synthetic", min_user_count=30, synthetic__n_users=80, synthetic__n_items=50, synthetic__mean_length=30
    )
    log = load_log(config)
    assert 0 < log.n_users < 80 and np.diff(log.offsets).min() >= 30
    with pytest.raises(DataError, match=r"data.synthetic: .*items at least categories; raise them"):
        make_log(dataclasses.replace(SIZE, n_items=5))


def test_one_category_and_many():
    assert make_log(SyntheticConfig(0, 20, 10, 1, 10)).categories.max() == 1
    assert make_log(SyntheticConfig(0, 20, 60, 30, 10)).category_names[-1] == "Genre 30"
