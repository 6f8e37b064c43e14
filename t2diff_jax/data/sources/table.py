"""A user's own log: CSV, TSV or Parquet with one behaviour per row, and optional files of item and user features."""

import pathlib
from collections.abc import Sequence

import numpy as np

from t2diff_jax.config import DataConfig, TableConfig
from t2diff_jax.data.log import DataError, InteractionLog, ItemTable, UserTable, build_log
from t2diff_jax.data.sources import features, text

_SECONDS = "convert times to unix seconds"


def load_table(config: DataConfig) -> InteractionLog:
    """Reads the file `config.path` by the columns that `config.table` names.

    Ids are integers or strings; times are unix seconds, of which fractions are cut off. Feature files that are given by
    a relative path lie beside the log. Features in the log itself are taken from the first row of an item or user.

    Raises:
      DataError: a file or column is missing, a value cannot be read, or an id is listed twice in a feature file.
    """
    if not config.path:
        raise DataError("data.path is empty; set it to a .csv, .tsv or .parquet file with one behaviour per row")
    keys = config.table
    path = text.existing(config.path, "set data.path to the file of the log")
    in_log = [c for c in (keys.category, keys.title) if c and not keys.item_file]
    in_log += [c for c in keys.user_columns if not keys.user_file]
    log = _read(path, (keys.user, keys.item, keys.time, *in_log), keys)
    users, items = text.ids(log, keys.user), text.ids(log, keys.item)
    return build_log(
        path.stem,
        users,
        items,
        _seconds(log, keys.time),
        min_user_count=config.min_user_count,
        min_item_count=config.min_item_count,
        item_features=_items(path.parent, log, items, keys),
        user_features=_users(path.parent, log, users, keys) if config.user_features else None,
    )


def _read(path: pathlib.Path, columns: Sequence[str], keys: TableConfig) -> text.TextTable:
    columns = tuple(dict.fromkeys(columns))
    match path.suffix.lower():
        case ".csv":
            return text.read_text(path, separator=",", columns=columns, header=True, quoted=True)
        case ".tsv":
            return text.read_text(path, separator="\t", columns=columns, header=True, quoted=True)
        case ".parquet":
            return _read_parquet(path, columns, keys)
    raise DataError(f"{path}: unknown kind of file {path.suffix!r}; give a .csv, .tsv or .parquet file")


def _read_parquet(path: pathlib.Path, columns: Sequence[str], keys: TableConfig) -> text.TextTable:
    pl = text.import_polars()
    try:
        schema = pl.read_parquet_schema(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
    missing = [name for name in columns if name not in schema]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r} among {', '.join(map(repr, schema))}; "
            "rename the column or correct the configured name"
        )
    frame = pl.read_parquet(path, columns=list(columns))
    lists = [name for name in columns if isinstance(schema[name], pl.List)]
    frame = frame.with_columns(pl.col(n).cast(pl.List(pl.String)).list.join(keys.category_separator) for n in lists)
    frame = frame.select(pl.col(name).cast(pl.String) for name in columns)
    return text.TextTable(str(path), frame, pl.int_range(1, frame.height + 1, eager=True), unit="row")


def _seconds(table: text.TextTable, field: str) -> np.ndarray:
    pl = text.import_polars()
    if table.frame[field].cast(pl.Int64, strict=False).null_count() == 0:
        return text.integers(table, field, _SECONDS)
    return np.floor(text.floats(table, field, _SECONDS)).astype(np.int64)


def _items(folder: pathlib.Path, log: text.TextTable, items: np.ndarray, keys: TableConfig) -> ItemTable | None:
    columns = [c for c in (keys.category, keys.title) if c]
    if not columns:
        if keys.item_file:
            raise DataError(f"{keys.item_file}: no column of it is used; set data.table.category or data.table.title")
        return None
    ids, rows, table = _feature_rows(folder, log, items, keys.item_file, keys.item, columns, keys)
    titles = text.strings(table, keys.title)[rows] if keys.title else None
    categories, names = None, ()
    if keys.category:
        values = text.strings(table, keys.category)[rows]
        categories, names = features.encode_categories(values, keys.category_separator, names=None, ignore=())
    return ItemTable(ids, titles, categories, names)


def _users(folder: pathlib.Path, log: text.TextTable, users: np.ndarray, keys: TableConfig) -> UserTable | None:
    if not keys.user_columns:
        if keys.user_file:
            raise DataError(f"{keys.user_file}: no column of it is used; set data.table.user_columns")
        return None
    ids, rows, table = _feature_rows(folder, log, users, keys.user_file, keys.user, keys.user_columns, keys)
    columns = {name: text.strings(table, name)[rows] for name in keys.user_columns}
    return UserTable(ids, *features.encode_attributes(columns))


def _feature_rows(
    folder: pathlib.Path,
    log: text.TextTable,
    log_ids: np.ndarray,
    file: str,
    id_column: str,
    columns: Sequence[str],
    keys: TableConfig,
) -> tuple[np.ndarray, np.ndarray, text.TextTable]:
    """The ids, the rows that describe them, and the table they are rows of: the feature file, or else the log."""
    if not file:
        ids, rows = np.unique(log_ids, return_index=True)
        return ids, rows, log
    path = text.existing(folder / file, "correct data.table.item_file or data.table.user_file, or set it to ''")
    table = _read(path, (id_column, *columns), keys)
    # The type of the ids is the log's: in a feature file, other ids than numbers may lie beyond the log.
    if log_ids.dtype.kind == "i":
        ids = text.integers(table, id_column, "the ids of the log are whole numbers: use the same ids in both files")
    else:
        ids = text.string_ids(table, id_column)
    return ids, np.arange(len(ids)), table
