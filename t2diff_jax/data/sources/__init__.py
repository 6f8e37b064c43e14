"""Raw files of one kind or another to an interaction log."""

import dataclasses

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import BLOCK, InteractionLog, attach_content
from t2diff_jax.data.parts import Parts
from t2diff_jax.data.prepared import load_prepared


def load_log(config: DataConfig) -> InteractionLog:
    """Reads the configured source. Categories and user features that are switched off are not in the log.

    Raises:
      DataError: files missing, unreadable or not in the format of the source.
      ImportError: a package that only this source needs is not installed.
    """
    log = _read(config)
    if not config.categories:
        log = dataclasses.replace(log, categories=None, category_names=())
    if not config.user_features:
        log = dataclasses.replace(log, user_features=None, user_feature_names=(), user_feature_sizes=())
    return attach_content(log, config.content) if config.content else log


def open_parts(config: DataConfig, rows: int = BLOCK) -> Parts | None:
    """The files of the configured source where they can be read in parts; None where the whole is read at once.

    Args:
      rows: that are read at a time where features are taken from the log itself.

    Raises:
      DataError: files missing or not those of one log.
    """
    match config.source:
        case "kuairand":
            from t2diff_jax.data.sources.kuairand import kuairand_parts

            return kuairand_parts(config)
        case "table":
            from t2diff_jax.data.sources.table import table_parts

            return table_parts(config, rows)
        case _:
            return None


def _read(config: DataConfig) -> InteractionLog:
    # Imports stay inside the branches: a source's packages are needed only where it is used.
    match config.source:
        case "synthetic":
            from t2diff_jax.data.sources.synthetic import load_synthetic

            return load_synthetic(config)
        case "movielens":
            from t2diff_jax.data.sources.movielens import load_movielens

            return load_movielens(config)
        case "kuairand":
            from t2diff_jax.data.sources.kuairand import load_kuairand

            return load_kuairand(config)
        case "table":
            from t2diff_jax.data.sources.table import load_table

            return load_table(config)
        case "tfds":
            from t2diff_jax.data.sources.tfds import load_tfds

            return load_tfds(config)
        case "prepared":
            return load_prepared(config)
        case _:
            raise ValueError(f"data.source: {config.source!r} is not a source")
