"""From a log to what the models know of it: the catalogue's arrays and the static sizes."""

import numpy as np

from t2diff_jax.config import Config
from t2diff_jax.data.log import InteractionLog
from t2diff_jax.data.splits import Split
from t2diff_jax.types import Catalogue, Sizes


def table_rows(n_items: int, row_multiple: int) -> int:
    """R, the rows of an item table: row 0, the items, and empty rows up to a multiple of `row_multiple`."""
    return -(-(n_items + 1) // row_multiple) * row_multiple


def make_catalogue(log: InteractionLog, split: Split, row_multiple: int) -> Catalogue:
    """The catalogue as host arrays, filled up with empty rows to a multiple of `row_multiple`.

    Counts are of training behaviours only: what the evaluation targets are must not be known.
    """
    rows = table_rows(log.n_items, row_multiple)
    counts, ends = np.zeros(rows, np.int64), log.offsets[:-1] + split.train_end
    for block, users in log.blocks():
        items = log.items[block][np.arange(block.start, block.stop) < ends[users]]
        np.add.at(counts, items, 1)
    return Catalogue(counts.astype(np.float32), _fill(log.categories, rows), _fill(log.content, rows), log.n_items)


def make_sizes(log: InteractionLog, catalogue: Catalogue, config: Config) -> Sizes:
    """The static sizes of `log` under `config`."""
    return Sizes(
        rows=catalogue.n_rows,
        window=config.data.window,
        categories=0 if log.categories is None else len(log.category_names) + 1,
        content=0 if log.content is None else log.content.shape[1],
        user_features=() if log.user_features is None else tuple(log.user_feature_sizes),
        lags=config.data.real_times,
        users=log.n_users,
    )


def _fill(rows: np.ndarray | None, n: int) -> np.ndarray | None:
    return None if rows is None else np.pad(rows, ((0, n - len(rows)), (0, 0)))
