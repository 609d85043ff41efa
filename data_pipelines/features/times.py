"""Times in the forms that logs write them in, read as microseconds since 1970 (UTC).

Without a format only what has one meaning is read: ISO 8601 and close forms of it, and numbers that count from 1970.
Everything else needs a key ``time_format``, which :mod:`data_pipelines.features.time_formats` guesses.
"""

from functools import partial
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import AfterValidator

from data_pipelines.features.values import MICROSECONDS

CALENDARS = {
    "YYYYMMDD": "%Y%m%d",
    "YYMMDDHH": "%y%m%d%H",
    "YYYYMMDDHH": "%Y%m%d%H",
    "YYYYMMDDHHMM": "%Y%m%d%H%M",
    "YYYYMMDDHHMMSS": "%Y%m%d%H%M%S",
}
"""Formats of digits by name."""
UNITS = {"unix_s": 1e6, "unix_ms": 1e3, "unix_us": 1.0, "unix_ns": 1e-3}
"""Microseconds per unit of a number that counts from 1970, by the name of the format."""
NAMES = ("iso", *UNITS, "excel", *CALENDARS)
"""Every format that has a name; all others are patterns of strptime."""

_EXCEL_1970 = 25569
_DAY = 86400 * MICROSECONDS
_ISO = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y-%m-%d %I:%M:%S %p",
    "%Y-%m-%d %I:%M %p",
)
_YEAR_1000 = -30_610_224_000 * MICROSECONDS
_FIRST_YEAR, _LAST_YEAR = 1990, 2100


def check_format(format: str) -> str:
    """``format`` if it is one of :data:`NAMES` or a pattern of strptime.

    Raises:
        ValueError: It is neither, or has ``%Z``, which would read the name of a zone and ignore it.
    """
    if format in NAMES:
        return format
    if "%" not in format:
        raise ValueError(
            f"{format!r} is not a time format: write a pattern such as '%d.%m.%Y %H:%M', or {', '.join(NAMES)}"
        )
    if "%Z" in format:
        raise ValueError(f"{format!r}: names of time zones are not read: write %z for offsets such as +02:00")
    try:
        example = pl.datetime(2024, 1, 5, 13, 30, time_zone="UTC")
        written = pl.select(example.dt.to_string(format.replace("%#z", "%z"))).to_series()
        if _parse(written, format).null_count():
            raise ValueError(f"{format!r} does not read what it writes, such as {written[0]!r}: check the pattern")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{format!r} is not a pattern of strptime: {str(error).splitlines()[0]}") from None
    return format


TimeFormat = Annotated[str, AfterValidator(check_format)]
"""The type of a key for the format of times: one of :data:`NAMES`, or a pattern of strptime."""


def epoch(column: pl.Expr, dtype: pl.DataType, format: str | None = None) -> pl.Expr:
    """``column`` as Int64 microseconds since 1970 (UTC); a value that cannot be read is null.

    Dates and datetimes are read as they are. Without a format, text is read as ISO 8601 and close forms (slashes
    between year, month and day, a comma before the fraction, `` UTC``, a 12-hour clock). Numbers, also as text, count
    seconds, milli-, micro- or nanoseconds since 1970, told apart by their size (below 1e11, 1e14, 1e17: years 1973 to
    5138 have one meaning). Numbers that look like a calendar (``20260131``, ``2026013114``) are not read.

    Args:
        format: One of :data:`NAMES`, or a pattern of strptime. ``iso`` reads text only, ``excel`` counts days from
            1899-12-30.

    Raises:
        TypeError: Values of ``dtype`` are not times.
    """
    if isinstance(dtype, pl.Datetime | pl.Date):
        return column.cast(pl.Datetime("us") if dtype == pl.Date else dtype).dt.epoch("us")
    if dtype == pl.Null:
        return column.cast(pl.Int64)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column, dtype = column.cast(pl.String), pl.String()
    if dtype != pl.String and not dtype.is_numeric():
        raise TypeError(f"{dtype} is not a time")
    if format == "excel" or format in UNITS:
        return _scaled(column, dtype, format)
    if format in CALENDARS:
        parse = partial(_parse, format=CALENDARS[format])
        return _digits(column, dtype, len(format)).map_batches(parse, return_dtype=pl.Int64, is_elementwise=True)
    if format is not None or dtype == pl.String:
        written = column.cast(pl.String)
        return written.map_batches(partial(_read, format=format), return_dtype=pl.Int64, is_elementwise=True)
    return _by_size(column, dtype)


def to_text(microseconds: int) -> str:
    """A time in microseconds since 1970 as text, to the second."""
    return str(np.datetime64(microseconds, "us").astype("datetime64[s]")).replace("T", " ")


def _digits(column: pl.Expr, dtype: pl.DataType, width: int) -> pl.Expr:
    """Whole numbers as text of ``width`` digits: without the ``.0`` of floats, with the zeros that numbers lose."""
    if dtype == pl.String:
        return column.str.strip_chars().str.replace(r"\.0+$", "")
    return column.cast(pl.Int64, strict=False).cast(pl.String).str.zfill(width)


def _scaled(column: pl.Expr, dtype: pl.DataType, format: str) -> pl.Expr:
    if dtype == pl.String:
        column = column.str.strip_chars()
    if format != "excel" and (dtype.is_integer() or dtype == pl.String):
        whole = column.cast(pl.Int64, strict=False)
        exact = whole // 1000 if format == "unix_ns" else whole * int(UNITS[format])
        in_range = whole.abs() < 2**62 // max(int(UNITS[format]), 1)
        exact = pl.when(in_range).then(exact)
        return exact if dtype.is_integer() else pl.coalesce(exact, _rounded(column, format))
    return _rounded(column, format)


def _rounded(column: pl.Expr, format: str) -> pl.Expr:
    value = column.cast(pl.Float64, strict=False)
    micros = (value - _EXCEL_1970) * _DAY if format == "excel" else value * UNITS[format]
    return pl.when(micros.is_finite()).then(micros.round()).cast(pl.Int64, strict=False)


def _by_size(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    value = column.cast(pl.Int64, strict=False)
    whole = value
    if not dtype.is_integer():
        number = column.cast(pl.Float64)
        value = pl.when(number.is_finite()).then(number)
        whole = value.cast(pl.Int64, strict=False)
    size = value.abs()
    scaled = (
        pl.when(_is_calendar(whole))
        .then(None)
        .when(size < 10**11)
        .then(value * MICROSECONDS)
        .when(size < 10**14)
        .then(value * 1000)
        .when(size < 10**17)
        .then(value)
        .otherwise(value * 1e-3)
    )
    return scaled.cast(pl.Int64, strict=False)


def _is_calendar(number: pl.Expr) -> pl.Expr:
    """Whether whole numbers are ``YYYYMMDD`` of 1990 to 2100, with the hour, minute and second after it or not.

    Taken for counts from 1970 they would be times of 1970, 1976, 2033 to 2036, or after the year 2600.
    """
    found: pl.Expr = pl.lit(False)
    for parts in ((), (24,), (24, 60), (24, 60, 60)):
        scale = 100 ** len(parts)
        inside = number.is_between(_FIRST_YEAR * 10_000 * scale, (_LAST_YEAR + 1) * 10_000 * scale - 1)
        day, month = number // scale % 100, number // (scale * 100) % 100
        valid = day.is_between(1, 31) & month.is_between(1, 12)
        for place, limit in enumerate(parts):
            valid &= number // 100 ** (len(parts) - place - 1) % 100 < limit
        found = found | (inside & valid)
    return found


def _read(values: pl.Series, format: str | None) -> pl.Series:
    """Text as times. Each format is tried on what those before it could not read, so no row depends on the others."""
    values = values.str.strip_chars()
    if format not in (None, "iso"):
        assert format is not None
        return _parse(values, format)
    iso = values.str.replace(" UTC", "+00:00", literal=True)
    iso = iso.str.replace("T", " ", literal=True).str.replace("Z", "+00:00", literal=True)
    iso = iso.str.replace(",", ".", literal=True).str.replace_all("/", "-", literal=True)
    found = pl.Series(values.name, [None], dtype=pl.Int64).new_from_index(0, len(values))
    for pattern in _ISO:
        left = (found.is_null() & iso.is_not_null()).arg_true()
        if left.is_empty():
            return found
        found = found.scatter(left, _parse(iso.gather(left), pattern))
    if format == "iso":
        return found
    left = found.is_null().arg_true()
    numbers = values.gather(left).cast(pl.Float64, strict=False).to_frame("x")
    return found.scatter(left, numbers.select(_by_size(pl.col("x"), pl.Float64())).to_series())


def _parse(values: pl.Series, format: str) -> pl.Series:
    """Text by a pattern of strptime; a year with fewer digits than the pattern asks for is not read."""
    if ("%H" in format or "%I" in format) and "%M" not in format:  # Polars needs the minute beside the hour
        values, format = values + " 00", f"{format} %M"
    read = values.str.to_datetime(format, time_unit="us", strict=False, exact=True).dt.epoch("us")
    return read.set(read < _YEAR_1000, None)
