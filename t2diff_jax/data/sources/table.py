"""A user's own log: CSV, TSV or Parquet with one behaviour per row, and optional files of item and user features."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from t2diff_jax.config import DataConfig, TableConfig
from t2diff_jax.data.log import BLOCK, DataError, InteractionLog, ItemTable, UserTable
from t2diff_jax.data.parts import Behaviours, Parts, load_parts
from t2diff_jax.data.sources import features, text, times

_FirstRows = Callable[[np.ndarray, str, Sequence[str]], tuple[np.ndarray, dict[str, np.ndarray]]]
_KINDS = (".csv", ".tsv", ".parquet")


def load_table(config: DataConfig) -> InteractionLog:
    """Reads the file, or the folder of files, `config.path` by the columns that `config.table` names.

    Ids are integers or strings; times are unix seconds or of ISO 8601 (UTC where they name no offset; in Parquet also
    datetimes and dates), and fractions of seconds are cut off. Feature files that are given by a relative path lie
    beside the log, or in its folder. Features in the log itself are taken from the first row of an item or user.

    Raises:
      DataError: a file or column is missing, a value cannot be read, or an id is listed twice in a feature file.
    """
    return load_parts(table_parts(config), config)


def table_parts(config: DataConfig, rows: int = BLOCK) -> Parts:
    """The files of the log that `config.path` and `config.table` describe; those of a folder by name.

    Args:
      rows: that are read at a time where features are taken from the log itself.

    Raises:
      DataError: there is none, files of several kinds lie side by side, or a feature file of which nothing is used.
    """
    if not config.path:
        raise DataError("data.path is empty; set it to a .csv, .tsv or .parquet file with one behaviour per row")
    path = text.existing(config.path, "set data.path to the file of the log, or to the folder of its files")
    keys = config.table
    for file, used, key in (
        (keys.item_file, keys.category or keys.title, "data.table.category or data.table.title"),
        (keys.user_file, keys.user_columns or not config.user_features, "data.table.user_columns"),
    ):
        if file and not used:
            raise DataError(f"{file}: no column of it is used; set {key}")
    files = _files(path, config) if path.is_dir() else (path,)
    _check_kind(files[0])
    first_rows = functools.partial(_first_rows, files, rows, keys)
    return Parts(
        path.stem,
        files,
        functools.partial(_behaviours, keys, config.real_times),
        functools.partial(_items, path, first_rows, keys),
        functools.partial(_users, path, first_rows, keys) if config.user_features else features.none,
        f"{path}: empty log, no behaviour in it; check the file",
    )


def _files(folder: epath.Path, config: DataConfig) -> tuple[epath.Path, ...]:
    named = [folder / file for file in (config.table.item_file, config.table.user_file) if file]
    named = [path.resolve() for path in (*named, *[epath.Path(config.content)] * bool(config.content))]
    aside = {*named, *(parent for path in named for parent in path.parents)}
    inside = sorted(path for path in folder.iterdir() if path.resolve() not in aside and path.name[0] != ".")
    files = [path for path in inside if path.suffix.lower() in _KINDS]
    # Whoever writes a log in parts marks what is no part of it so: _SUCCESS.
    others = [path for path in inside if path not in files and path.name[0] != "_"]
    if files and others:
        other = others[0]
        raise DataError(
            f"{folder}: {other.name} is no file {', '.join(_KINDS)}; move it out of the folder of the log, unpack it "
            "if it is a part of it, or begin its name with _ to leave it out"
        )
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) != 1:
        found = f"files of the kinds {', '.join(kinds)} side by side" if kinds else f"no file {', '.join(_KINDS)}"
        raise DataError(f"{folder}: {found}; give one folder of files of one kind")
    return tuple(files)


def _check_kind(path: epath.Path) -> None:
    if path.suffix.lower() not in _KINDS:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; give a .csv, .tsv or .parquet file")


def _behaviours(keys: TableConfig, real_times: bool, path: epath.Path, rows: int | None) -> Iterator[Behaviours]:
    for table in _read(path, (keys.user, keys.item, keys.time), keys, rows):
        seconds = times.seconds(table, keys.time, real=real_times)
        yield Behaviours(text.ids(table, keys.user), text.ids(table, keys.item), seconds)


def _read(path: epath.Path, columns: Sequence[str], keys: TableConfig, rows: int | None) -> Iterator[text.TextTable]:
    _check_kind(path)
    columns = tuple(dict.fromkeys(columns))
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, columns, keys, rows)
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    return text.read_blocks(path, rows=rows, separator=separator, columns=columns, header=True, quoted=True)


def _read_parquet(
    path: epath.Path, columns: Sequence[str], keys: TableConfig, rows: int | None
) -> Iterator[text.TextTable]:
    pl = text.import_polars()
    try:
        with path.open("rb") as file:  # a path would be taken for a pattern
            schema = pl.read_parquet_schema(file)
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
    for name in columns:
        _check_type(path, name, schema[name], keys)
    lists = [name for name in columns if isinstance(schema[name], (pl.List, pl.Array))]
    frame = pl.scan_parquet(str(path), glob=False).select(columns)
    frame = frame.with_columns(pl.col(n).cast(pl.List(pl.String)).list.join(keys.category_separator) for n in lists)
    if schema.get(keys.time) in (pl.Datetime, pl.Date) and keys.time in columns:
        frame = frame.with_columns(pl.col(keys.time).dt.epoch("s"))
    numbers = [name for name in columns if schema[name].is_integer() or schema[name].is_float()]
    texts = [name for name in columns if name not in numbers or schema[name] == pl.UInt64]
    frame = frame.with_columns(pl.col(name).cast(pl.String) for name in texts)
    before = 0
    try:
        for block in text.collect_blocks(frame, rows):
            places = pl.int_range(before + 1, before + block.height + 1, eager=True)
            yield text.TextTable(str(path), block, places, "row")
            before += block.height
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{path}: cannot be read after row {before} ({str(error).splitlines()[0]:.200}); write it again, "
            "text as UTF-8 strings"
        ) from error


def _check_type(path: epath.Path, name: str, dtype: Any, keys: TableConfig) -> None:
    """Numbers and text can be read; dates where no time is wanted; lists of these as features; ids have no decimals."""
    pl = text.import_polars()
    is_id, is_time = name in (keys.user, keys.item), name == keys.time
    is_list = isinstance(dtype, (pl.List, pl.Array)) and not is_id and not is_time
    inner = dtype.inner if is_list else dtype
    number = inner.is_numeric() and not (is_id and getattr(inner, "scale", 0))
    date = inner.is_temporal() and inner != pl.Duration and (not is_time or inner != pl.Time)
    if not (number or date or inner in (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Boolean, pl.Null)):
        remedy = times.SECONDS if is_time else "convert the column to integers or strings"
        raise DataError(f"{path}, field {name}: values of type {dtype} cannot be read; {remedy}")


def _items(path: epath.Path, first_rows: _FirstRows, keys: TableConfig, items: np.ndarray) -> ItemTable | None:
    columns = [c for c in (keys.category, keys.title) if c]
    if not columns:
        return None
    ids, values = _feature_columns(path, first_rows, items, keys.item_file, keys.item, columns, keys)
    titles = values[keys.title] if keys.title else None
    categories, names = None, ()
    if keys.category:
        categories, names = features.encode_categories(
            values[keys.category], keys.category_separator, names=None, ignore=()
        )
    return ItemTable(ids, titles, categories, names)


def _users(path: epath.Path, first_rows: _FirstRows, keys: TableConfig, users: np.ndarray) -> UserTable | None:
    if not keys.user_columns:
        return None
    ids, values = _feature_columns(path, first_rows, users, keys.user_file, keys.user, keys.user_columns, keys)
    return UserTable(ids, *features.encode_attributes(values))


def _feature_columns(
    path: epath.Path,
    first_rows: _FirstRows,
    log_ids: np.ndarray,
    file: str,
    id_column: str,
    columns: Sequence[str],
    keys: TableConfig,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The ids and, by column, the strings that describe them: of the feature file, or else of the log's first rows."""
    if not file:
        return first_rows(log_ids, id_column, columns)
    folder = path if path.is_dir() else path.parent
    path = text.existing(folder / file, "correct data.table.item_file or data.table.user_file, or set it to ''")
    (table,) = _read(path, (id_column, *columns), keys, None)
    # The type of the ids is the log's: in a feature file, other ids than numbers may lie beyond the log.
    if log_ids.dtype.kind == "i":
        ids = text.integers(table, id_column, "the ids of the log are whole numbers: use the same ids in both files")
    else:
        ids = text.ids(table, id_column).astype(np.str_)
    return ids, {name: text.strings(table, name) for name in columns}


def _first_rows(
    files: Sequence[epath.Path],
    rows: int,
    keys: TableConfig,
    log_ids: np.ndarray,
    id_column: str,
    columns: Sequence[str],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Over all files again, block by block: the log may be larger than memory."""
    ids = np.unique(log_ids)
    missing = np.ones(len(ids), bool)
    values = {name: np.full(len(ids), "", object) for name in columns}
    for table in (table for file in files for table in _read(file, (id_column, *columns), keys, rows)):
        found, first = np.unique(text.ids(table, id_column).astype(ids.dtype), return_index=True)
        at = np.searchsorted(ids, found)
        new = missing[at]
        table = dataclasses.replace(table, frame=table.frame[first[new]], lines=table.lines[first[new]])
        for name in columns:
            values[name][at[new]] = text.strings(table, name)
        missing[at] = False
    return ids, {name: text.to_str_array(column.tolist()) for name, column in values.items()}
