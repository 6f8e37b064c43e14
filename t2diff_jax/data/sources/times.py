"""A column of times to unix seconds."""

from typing import Any

import numpy as np

from t2diff_jax.data.log import YEAR_10000
from t2diff_jax.data.sources import text

SECONDS = "convert times to unix seconds, or to ISO 8601 (2024-05-31T23:59:59)"
# Date; hours and minutes; seconds, and what is cut off of them; offset from UTC.
_ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:[.,][0-9]+)?)?)?"
    r"(?:Z|([+-](?:[01][0-9]|2[0-3]))(?::?([0-5][0-9]))?)?$"
)
_DAYS = (19_000_101, 21_001_231)  # dates as eight digits


def seconds(table: text.TextTable, field: str, *, real: bool) -> np.ndarray:
    """A column of times as int64 [rows]: integers exactly, of other numbers the next whole second below.

    Dates and times of ISO 8601 are unix seconds then; UTC where they name no offset, fractions cut off.

    real: False where times only give the order.

    Raises:
      DataError: a value is missing, neither a number nor a date, so large that differences of times would not fit
        int64, or, of real times, beyond the year 9999, as milliseconds are; all real times are dates of eight digits.
    """
    pl = text.import_polars()
    column = table.frame[field]
    texts = column if column.dtype.is_integer() else column.cast(pl.String)
    values = texts.cast(pl.Int64, strict=False)
    if values.null_count():
        numbers = column.cast(pl.Float64, strict=False)
        others = numbers.floor().cast(pl.Int64, strict=False)
        if numbers.null_count() and not texts.dtype.is_integer():
            others = others.zip_with(numbers.is_not_null(), _iso_seconds(texts))
        values = values.zip_with(values.is_not_null(), others)
        known = numbers.is_finite().fill_null(False) | values.is_not_null()
        text.check_values(table, field, ~known, "a finite number or an ISO 8601 date", SECONDS)
    fits = values.is_between(-(2**62), 2**62, closed="none").fill_null(False)
    text.check_values(table, field, ~fits, "a time below 2^62", SECONDS)
    if real:
        expected = "a unix time in seconds (before the year 10000)"
        remedy = "divide milliseconds by 1000, or set data.real_times=False if times only give the order"
        text.check_values(table, field, values >= YEAR_10000, expected, remedy)
        expected = "a unix time in seconds, no date of eight digits,"
        remedy = "write 20240531 as 2024-05-31, or set data.real_times=False if times only give the order"
        text.check_values(table, field, _are_days(values), expected, remedy)
    return values.to_numpy()


def _are_days(values: Any) -> Any:
    """Which numbers are dates of eight digits, if all of at least two are: as seconds they are some days of 1970."""
    days, months = values % 100, values // 100 % 100
    are = values.is_between(*_DAYS) & months.is_between(1, 12) & days.is_between(1, 31)
    return are if len(are) > 1 and are.all() else ~values.is_not_null()


def _iso_seconds(column: Any) -> Any:
    """Unix seconds of dates and times of ISO 8601, null where a text is none: polars Series of strings to int64."""
    pl = text.import_polars()
    date, time, second, hours, minutes = (pl.col("t").str.extract(_ISO, group) for group in (1, 2, 3, 4, 5))
    local = pl.concat_str(date, pl.lit(" "), time.fill_null("00:00"), pl.lit(":"), second.fill_null("00"))
    local = local.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s")
    sign = pl.when(hours.str.starts_with("-")).then(-60).otherwise(60)
    offset = hours.cast(pl.Int64) * 3600 + sign * minutes.cast(pl.Int64).fill_null(0)
    return column.alias("t").to_frame().select(local - offset.fill_null(0))["t"]
