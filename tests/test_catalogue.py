"""The catalogue: counts of training behaviours only, filling rows; the sizes that shape a model."""

import numpy as np
import pytest
from data_files import data_config
from toy import make_log, random_log

from configs import base
from t2diff_jax.config_values import from_mapping
from t2diff_jax.data.catalogue import make_catalogue, make_sizes
from t2diff_jax.data.splits import leave_one_out, make_split


def featured_log():
    categories = np.array([[0, 0], [1, 2], [2, 0], [3, 0], [1, 0]], np.int32)
    content = np.arange(15, dtype=np.float32).reshape(5, 3)
    fields = dict(categories=categories, category_names=("a", "b", "c"), content=content)
    return make_log([[1, 1, 2, 3, 4], [2, 1]], n_items=4, **fields)


def test_counts_by_hand():
    log = featured_log()
    catalogue = make_catalogue(log, leave_one_out(log), 1)
    # User 0 trains on 1, 1, 2 (3 validates, 4 tests), user 1 is too short to be tested and trains on both.
    assert catalogue.counts.tolist() == [0, 3, 2, 0, 0]
    assert catalogue.counts.dtype == np.float32
    assert (catalogue.n_rows, catalogue.n_items) == (5, 4)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 5), (2, 6), (5, 5), (8, 8)])
def test_rows_are_filled_up_with_padding(multiple, rows):
    log = featured_log()
    catalogue = make_catalogue(log, leave_one_out(log), multiple)
    assert catalogue.n_rows == rows and catalogue.n_items == 4
    assert catalogue.categories.shape == (rows, 2) and catalogue.content.shape == (rows, 3)
    np.testing.assert_array_equal(catalogue.categories[:5], log.categories)
    np.testing.assert_array_equal(catalogue.content[:5], log.content)
    for table in (catalogue.counts, catalogue.categories, catalogue.content):
        assert not table[5:].any()
    assert catalogue.content.dtype == np.float32 and catalogue.categories.dtype == np.int32


@pytest.mark.parametrize("protocol", ["user_holdout", "leave_one_out", "temporal"])
def test_counts_against_a_loop(protocol):
    log = random_log(users=60)
    split = make_split(log, data_config("synthetic", protocol=protocol), 1)
    counts = np.zeros(32)
    for user in range(log.n_users):
        for row in range(log.offsets[user], log.offsets[user] + split.train_end[user]):
            counts[log.items[row]] += 1
    np.testing.assert_array_equal(make_catalogue(log, split, 8).counts, counts)


def test_sizes():
    config = base.get_config()
    config.data.window, config.data.real_times = 20, False
    config = from_mapping(config)
    log = featured_log()
    sizes = make_sizes(log, make_catalogue(log, leave_one_out(log), 8), config)
    assert (sizes.rows, sizes.window, sizes.categories, sizes.content) == (8, 20, 4, 3)
    assert (sizes.user_features, sizes.lags) == ((), False)
    bare = random_log()
    sizes = make_sizes(bare, make_catalogue(bare, leave_one_out(bare), 8), config)
    assert (sizes.rows, sizes.categories, sizes.content, sizes.user_features) == (32, 0, 0, (3, 5))
