"""Delimited text to typed columns, with errors that name the file, the line and the field."""

import csv
import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from t2diff_jax.data.log import DataError

_LONGEST_ID = 256  # characters: an array of strings gives each id the room of the longest
_LINE = "\0line"  # no column of a file is called that


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Columns of one file, still as text.

    Attributes:
      frame: polars DataFrame of strings, or of numbers where the file has types.
      lines: polars Series, the line of the file that each row comes from.
      unit: what `lines` counts: "line", or "row" where the file has no lines.
      quoted: whether `lines` takes a row whose quoted fields hold line ends for one line.
    """

    path: str
    frame: Any
    lines: Any
    unit: str = "line"
    quoted: bool = False


def import_polars() -> Any:
    """The polars module, which only reading files needs.

    Raises:
      ImportError: polars is not installed.
    """
    try:
        import polars
    except ImportError as error:
        raise ImportError(
            "reading interaction logs from files needs polars; install it with: pip install polars"
        ) from error
    return polars


def existing(path: epath.PathLike, remedy: str) -> epath.Path:
    """The path of a file or folder that must be there.

    Raises:
      DataError: it is not; `remedy` says what to do.
    """
    if not epath.Path(path).exists():
        raise DataError(f"{path}: no such file or folder; {remedy}")
    return epath.Path(path)


def read_text(path: epath.Path, *, blanks: bool = False, **form: Any) -> TextTable:
    """Reads the named columns of a delimited UTF-8 file as strings, every row of it. `form`: see `read_blocks`.

    Args:
      blanks: whether a blank also separates; the file is then read into memory first.

    Raises:
      DataError: as `read_blocks`.
    """
    return next(read_blocks(path, blanks=blanks, rows=None, **form))


def read_blocks(
    path: epath.Path,
    *,
    rows: int | None,
    separator: str,
    columns: Sequence[str],
    header: bool,
    quoted: bool,
    blanks: bool = False,
    keep: Any = None,
) -> Iterator[TextTable]:
    """Yields the named columns of a delimited UTF-8 file as strings, so many rows at a time, in the order of the file.

    Args:
      rows: of a block; None: all rows in one block, also if there are none.
      separator: one character, or the same one twice ("::").
      columns: with a header, the columns wanted; without, the names of all fields in order.
      quoted: whether fields may be put in double quotes.
      blanks: whether a blank also separates.
      keep: polars expression over `columns`; rows where it is false are left out as they are read.

    Raises:
      DataError: empty file, wrong separator, missing column, a line with too many fields, or text that is not UTF-8.
    """
    pl = import_polars()
    fields = first_fields(path, separator, quoted=quoted, blanks=blanks)
    _check_fields(path, fields, separator, columns, header)
    step = len(separator)
    frame = pl.scan_csv(
        path.read_bytes().replace(b" ", separator.encode()) if blanks else str(path),
        separator=separator[0],
        has_header=header,
        infer_schema=False,
        quote_char='"' if quoted else None,
        row_index_name=_LINE,
        row_index_offset=2 if header else 1,
        glob=False,
    )
    if not header:  # of "1::2" polars makes three fields, the middle one empty
        frame = frame.rename(dict(zip(frame.collect_schema().names()[1::step], columns, strict=True)))
    frame = frame if keep is None else frame.filter(keep)
    frame = frame.select(_LINE, *columns) if step == 1 else frame
    try:
        for block in collect_blocks(frame, rows):
            if step > 1:
                _check_gaps(path, separator, block.drop(_LINE, *columns), block[_LINE])
            yield TextTable(str(path), block.select(columns), block[_LINE], quoted=quoted)
    except pl.exceptions.PolarsError as error:
        raise DataError(_unreadable(path, separator, len(fields), quoted, error)) from error


def collect_blocks(frame: Any, rows: int | None) -> Iterator[Any]:
    """The polars LazyFrame `frame` as DataFrames of so many rows (the last one fewer), in order; None: as one."""
    pl = import_polars()
    # With projection pushed into the reader, polars would pass over lines with too many fields.
    how = dict(engine="streaming", optimizations=pl.QueryOptFlags(projection_pushdown=False))
    if rows is None:
        yield frame.collect(**how)
    else:
        yield from frame.collect_batches(chunk_size=rows, maintain_order=True, **how)


def first_fields(path: epath.Path, separator: str, *, quoted: bool, blanks: bool = False) -> list[str]:
    """The fields of the first line: the column names of a file with a header.

    Raises:
      DataError: the file or its first line is empty or cannot be split, or lines end in "\\r" alone.
    """
    with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", errors="replace") as file:
        line = file.readline().rstrip("\n")
        ends = file.newlines
    if ends == "\r":
        raise DataError(f"{path}, line 1: ends in a carriage return alone; convert the line ends to line feeds")
    if not line:
        raise DataError(f"{path}, line 1: empty file or first line; give one row per line")
    line = line.replace(" ", separator) if blanks else line
    try:
        return next(csv.reader([line], delimiter=separator)) if quoted else line.split(separator)
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}; check quotes and separators") from error


def integers(table: TextTable, field: str, remedy: str = "correct or delete the line") -> np.ndarray:
    """A column as int64 [rows].

    Raises:
      DataError: a value is missing, not a whole number, or a float so large that others are rounded to it.
    """
    pl = import_polars()
    column = table.frame[field]
    values, expected = column.cast(pl.Int64, strict=False), "a whole number"
    bad = values.is_null()
    if column.dtype.is_float():
        digits = np.finfo(column.head(0).to_numpy().dtype).nmant + 1
        bad |= (values != column) | ~values.is_between(-(2**digits), 2**digits, closed="none")
        expected = f"a whole number below 2^{digits}"
    check_values(table, field, bad, expected, remedy)
    return values.to_numpy()


def floats(table: TextTable, field: str, remedy: str = "correct or delete the line") -> np.ndarray:
    """A column as float64 [rows].

    Raises:
      DataError: a value is missing or not a finite number.
    """
    pl = import_polars()
    values = table.frame[field].cast(pl.Float64, strict=False)
    check_values(table, field, ~values.is_finite().fill_null(False), "a finite number", remedy)
    return values.to_numpy()


def strings(table: TextTable, field: str) -> np.ndarray:
    """A column as strings [rows], missing values as "".

    Raises:
      DataError: a value holds a NUL character, with which strings of fixed width are filled up.
    """
    column = table.frame[field].cast(import_polars().String).fill_null("")
    check_values(table, field, column.str.contains("\0", literal=True), "text without NUL", "delete the NUL characters")
    return to_str_array(column.to_list())


def ids(table: TextTable, field: str) -> np.ndarray:
    """A column of ids: int64 [rows] if every value is the plain decimal form of an integer, else strings.

    Floats, as which some programs store integers, are integers.

    Raises:
      DataError: a value is missing, too long or holds a NUL character, or is a float that is no exact integer.
    """
    pl = import_polars()
    column = table.frame[field]
    if column.dtype.is_integer() or column.dtype.is_float():
        _check_ids(table, field)
        return integers(table, field, "convert the column to integers or strings")
    numbers = column.cast(pl.Int64, strict=False)
    # "007" and "7" are different ids: only the plain form may become a number
    if (numbers.cast(pl.String) == column).fill_null(False).all():
        return numbers.to_numpy()
    _check_ids(table, field)
    return strings(table, field)


def check_values(table: TextTable, field: str, bad: Any, expected: str, remedy: str) -> None:
    """Checks a column: the polars Series `bad` says which rows hold something else than `expected`.

    Raises:
      DataError: names the first of them and its line; `remedy` says what to do.
    """
    if bad.any():
        row = bad.arg_max()
        value = table.frame[field][row]
        found = "no value" if value in (None, "") else f"{value!r:.80}"
        number = table.lines[row]
        if table.quoted:
            number, _ = next(itertools.islice(_records(epath.Path(table.path), True), number - 1, None))
        raise DataError(
            f"{table.path}, {table.unit} {number}, field {field}: {found} where {expected} is needed; {remedy}"
        )


def to_str_array(values: Sequence[str]) -> np.ndarray:
    """Strings as a numpy array of fixed width, also when there are none."""
    return np.array(values, np.str_) if len(values) else np.zeros(0, "U1")


def _check_fields(path: epath.Path, fields: list[str], separator: str, columns: Sequence[str], header: bool) -> None:
    shown = f"; the separator must be {separator!r}" if len(fields) == 1 else ""
    if header:
        missing = [name for name in columns if name not in fields]
        if missing:
            raise DataError(
                f"{path}, line 1: no column {missing[0]!r} among {', '.join(map(repr, fields))}{shown}; "
                "rename the column or correct the configured name"
            )
    elif len(fields) != len(columns):
        raise DataError(
            f"{path}, line 1: expected the {len(columns)} fields {separator.join(columns)}, found {len(fields)} in "
            f"{separator.join(fields)[:80]!r}{shown}; convert the file"
        )


def _check_gaps(path: epath.Path, separator: str, gaps: Any, lines: Any) -> None:
    for gap in gaps:
        if gap.null_count() < len(gap):
            row = gap.is_not_null().arg_max()
            raise DataError(
                f"{path}, line {lines[row]}: {gap[row]!r} inside the separator {separator!r}; correct the line"
            )


def _check_ids(table: TextTable, field: str) -> None:
    column = table.frame[field]
    is_text = not column.dtype.is_numeric()
    missing = column.fill_null("") == "" if is_text else column.is_null()
    check_values(table, field, missing, "an id", "fill it in or delete the line")
    if is_text:
        expected = f"an id of at most {_LONGEST_ID} characters"
        check_values(table, field, column.str.len_chars() > _LONGEST_ID, expected, "shorten or number the ids")


def _records(path: epath.Path, quoted: bool) -> Iterator[tuple[int, bytes]]:
    """The rows of a file, each with the line that it begins in: between quotes, a line end is part of a field."""
    with path.open("rb") as file:
        first, lines, inside = 1, [], False
        for number, line in enumerate(file, start=1):
            lines.append(line)
            inside ^= quoted and line.count(b'"') % 2 == 1
            if not inside:
                yield first, b"".join(lines)
                first, lines = number + 1, []
        if lines:
            yield first, b"".join(lines)


def _unreadable(path: epath.Path, separator: str, n_fields: int, quoted: bool, error: Exception) -> str:
    """What to say of a file that polars refuses: the first line that explains it."""
    for number, raw in _records(path, quoted):
        try:
            row = raw.decode()
        except UnicodeDecodeError as fault:
            number += raw.count(b"\n", 0, fault.start)
            return f"{path}, line {number}: not UTF-8; convert the file to UTF-8"
        if quoted and row.count('"') % 2:
            return f'{path}, line {number}: a quote that is not closed; close it, or write "" for a quote inside quotes'
        found = "".join(row.split('"')[::2] if quoted else row).count(separator) + 1  # not between quotes
        if found > n_fields:
            return f"{path}, line {number}: {found} fields where {n_fields} are expected; correct or delete the line"
    return f"{path}: cannot be read ({str(error).splitlines()[0]:.200}); check quotes and separators"
