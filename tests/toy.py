"""Makers of small logs in memory."""

import numpy as np

from t2diff_jax.data.log import InteractionLog


def make_log(items, times=None, n_items=None, **fields) -> InteractionLog:
    """A log from one list of item ids per user; without `times` every behaviour's time is its position."""
    times = [range(len(row)) for row in items] if times is None else times
    flat = [item for row in items for item in row]
    return InteractionLog(
        name="toy",
        offsets=np.cumsum([0, *map(len, items)]),
        items=np.array(flat, np.int32),
        times=np.array([t for row in times for t in row], np.int64),
        user_ids=np.arange(len(items)),
        item_ids=np.arange(-1, max(flat) if n_items is None else n_items),
        **fields,
    )


def random_log(seed=0, users=20, n_items=30, longest=40, features=True) -> InteractionLog:
    """A log with 1..longest behaviours per user, seconds between them from 0 to days, and two user features."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, users)
    items = [generator.integers(1, n_items + 1, n).tolist() for n in lengths]
    gaps = [np.floor(10 ** generator.uniform(-1, 6, n)).astype(int) for n in lengths]
    fields = {}
    if features:
        fields["user_features"] = generator.integers(0, [3, 5], (users, 2)).astype(np.int32)
        fields |= {"user_feature_names": ("sex", "job"), "user_feature_sizes": (3, 5)}
    return make_log(items, [(10_000 + np.cumsum(g)).tolist() for g in gaps], n_items, **fields)
