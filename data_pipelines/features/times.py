"""Times in the forms that logs write them in, read as microseconds since 1970 (UTC)."""

from functools import partial

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.values import MICROSECONDS, text

CALENDARS = {
    "YYYYMMDD": "%Y%m%d",
    "YYMMDDHH": "%y%m%d%H",
    "YYYYMMDDHH": "%Y%m%d%H",
    "YYYYMMDDHHMM": "%Y%m%d%H%M",
    "YYYYMMDDHHMMSS": "%Y%m%d%H%M%S",
}
"""Formats of digits by name."""
EPOCHS = {"unix": 1e6, "unix_ms": 1e3, "unix_us": 1.0, "unix_ns": 1e-3}
"""Microseconds per unit of a number that counts from 1970."""
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
_ORDERED = tuple(
    date + clock
    for date in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m/%d/%y", "%d.%m.%y")
    for clock in (" %H:%M", " %H:%M:%S", "", " %I:%M %p", " %I:%M:%S %p")
)
"""Formats whose order of day and month only a key can tell, the likeliest first."""
_YEAR_1000 = -30_610_224_000 * MICROSECONDS
_NEARLY_ALL = 0.99


def check_format(format: str) -> str:
    """``format`` if it is a name or a strptime format.

    Raises:
        ValueError: It is neither.
    """
    if format not in {*CALENDARS, *EPOCHS, "excel"} and "%" not in format:
        names = ", ".join([*CALENDARS, *EPOCHS, "excel"])
        raise ValueError(f"{format!r} is not a time format: use strptime's such as '%d.%m.%Y %H:%M', or one of {names}")
    return format


def epoch(column: pl.Expr, dtype: pl.DataType, format: str | None = None) -> pl.Expr:
    """``column`` as Int64 microseconds since 1970 (UTC); what cannot be read is null.

    Dates and datetimes are read as they are. Without a format text is read as ISO 8601 and its relatives (slashes, a
    comma before the fraction, `` UTC``, a 12-hour clock), and numbers as seconds, milli-, micro- or nanoseconds since
    1970, told apart by their size (below 1e11, 1e14, 1e17: years 1973 to 5138 are unambiguous).

    Args:
        format: A strptime format, or a name of :data:`CALENDARS`, :data:`EPOCHS` or ``excel`` (days since 1899-12-30).

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
        raise TypeError(f"{dtype} is no time")
    if format == "excel" or format in EPOCHS:
        return _scaled(column.str.strip_chars() if dtype == pl.String else column, format)
    if format is not None:
        return _parsed(text(column, dtype), CALENDARS.get(format, format))
    if dtype == pl.String:
        return column.map_batches(_read, return_dtype=pl.Int64, is_elementwise=True)
    return _by_size(column, dtype)


def calendar_format(values: pl.Series) -> str | None:
    """The name in :data:`CALENDARS` that fits nearly all of the values, if there is one: digits of 1990 to 2100.

    Such numbers are valid counts of seconds, too: a log of them would begin in 1970 or in the year 2611.
    """
    digits = values.to_frame("x").select(text(pl.col("x"), values.dtype)).to_series().drop_nulls()
    if digits.is_empty():
        return None
    low, high = (pl.lit(f"{year}-01-01").str.to_datetime(time_unit="us").dt.epoch("us") for year in (1990, 2101))
    for name, format in CALENDARS.items():
        sized = digits.filter(digits.str.len_bytes() == len(name)).to_frame("x")
        found = sized.select(_parsed(pl.col("x"), format).is_between(low, high, closed="left").sum()).item()
        if found >= _NEARLY_ALL * len(digits):
            return name
    return None


def refuse_calendar(reader: str, column: str, key: str, values: pl.Series) -> None:
    """Refuse numbers that were to be read by their size and look like a calendar.

    Raises:
        UserError: They do; the sentence names ``key`` and the format to set.
    """
    if values.dtype != pl.String and not values.dtype.is_numeric():
        return
    found = calendar_format(values)
    if found is not None:
        raise UserError(
            f"{reader}: the values of {column!r} such as {values.drop_nulls()[0]} look like {found}, and would be read "
            f"as seconds since 1970: set `{key}: {found}` (or `{key}: unix` if they are seconds)."
        )


def guess_time_format(values: pl.Series) -> str | None:
    """The format to write into a config so that ``values`` are read as times.

    Returns:
        ``None`` where nearly all values are read without a format, or by none. Of two orders of day and month that fit
        all values the American one is given: it is for the user to confirm.
    """
    values = values.drop_nulls()
    if values.is_empty() or (values.dtype != pl.String and not values.dtype.is_numeric()):
        return None
    calendar = calendar_format(values)
    if calendar is not None or values.dtype != pl.String:
        return calendar
    frame, enough = values.to_frame("x"), _NEARLY_ALL * len(values)
    if frame.select(epoch(pl.col("x"), pl.String()).count()).item() >= enough:
        return None
    reads = (f for f in _ORDERED if frame.select(epoch(pl.col("x"), pl.String(), f).count()).item() >= enough)
    return next(reads, None)


def _scaled(column: pl.Expr, format: str) -> pl.Expr:
    value = column.cast(pl.Float64, strict=False)
    micros = (value - _EXCEL_1970) * _DAY if format == "excel" else value * EPOCHS[format]
    return pl.when(micros.is_finite()).then(micros.round()).cast(pl.Int64, strict=False)


def _parsed(value: pl.Expr, format: str) -> pl.Expr:
    return value.map_batches(partial(_parse, format=format), return_dtype=pl.Int64, is_elementwise=True)


def _parse(values: pl.Series, format: str) -> pl.Series:
    if ("%H" in format or "%I" in format) and "%M" not in format:  # strptime needs the minute beside the hour
        values, format = values + " 00", f"{format} %M"
    return values.str.to_datetime(format, time_unit="us", strict=False, exact=True).dt.epoch("us")


def _by_size(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    value = column.cast(pl.Int64, strict=False)
    if not dtype.is_integer():
        number = column.cast(pl.Float64)
        value = pl.when(number.is_finite()).then(number)
    size = value.abs()
    scaled = (
        pl.when(size < 10**11)
        .then(value * MICROSECONDS)
        .when(size < 10**14)
        .then(value * 1000)
        .when(size < 10**17)
        .then(value)
        .otherwise(value * 1e-3)
    )
    return scaled.cast(pl.Int64, strict=False)


def _read(values: pl.Series) -> pl.Series:
    """Text as times: each format is tried on what those before it could not read, so no row depends on the others."""
    iso = values.str.strip_chars().str.replace(" UTC", "+00:00", literal=True)
    iso = iso.str.replace("T", " ", literal=True).str.replace("Z", "+00:00", literal=True)
    iso = iso.str.replace(",", ".", literal=True).str.replace_all("/", "-", literal=True)
    found = pl.Series(values.name, [None], dtype=pl.Int64).new_from_index(0, len(values))
    for format in _ISO:
        left = (found.is_null() & iso.is_not_null()).arg_true()
        if left.is_empty():
            return found
        read = _parse(iso.gather(left), format)
        found = found.scatter(left, read.set(read < _YEAR_1000, None))
    left = found.is_null().arg_true()
    numbers = values.gather(left).str.strip_chars().cast(pl.Float64, strict=False).to_frame("x")
    return found.scatter(left, numbers.select(_by_size(pl.col("x"), pl.Float64())).to_series())
