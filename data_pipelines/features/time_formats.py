"""Formats of times: guesses for a config, and errors for times that cannot be read without a format."""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.times import CALENDARS, NAMES, epoch, to_text
from data_pipelines.features.values import MICROSECONDS, is_missing

_DATES = (
    *("%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%Y", "%d.%m.%y", "%m-%d-%Y", "%d-%m-%Y"),
    *("%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
)
_CLOCKS = (" %H:%M", " %H:%M:%S", " %H:%M:%S%.f", "", " %I:%M %p", " %I:%M:%S %p", ", %I:%M:%S %p", ", %H:%M:%S")
_FRACTION = "%.f"
_WHOLE = (
    *("%d/%b/%Y:%H:%M:%S %z", "%a, %d %b %Y %H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y"),
    *("%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%#z", "%Y.%m.%d %H:%M:%S", "%Y.%m.%d"),
)
_PATTERNS = (*(date + clock for date in _DATES for clock in _CLOCKS), *_WHOLE)
"""Patterns that are tried, those that put the month first before those that put the day first."""
_LOOKED_AT = 1000
_NEARLY_ALL = 0.99
_MOST = 0.5
_EXCEL_DAYS = (32_874, 73_415)
"""Days of 1990 and of 2100, as Excel counts them."""
HOUR = 3600 * MICROSECONDS
_DAY = 24 * HOUR


def formats_of(values: pl.Series) -> list[str]:
    """The formats that read nearly all of ``values``, where nothing or not enough is read without one.

    Returns:
        Nothing where no key is needed, or no known format fits. Several where the order of day and month stays open:
        those that put the times in order, as logs usually are, come first.
    """
    given = _given(values)
    if given.is_empty() or not (given.dtype == pl.String or given.dtype.is_numeric()):
        return []
    calendar = _calendar(given)
    if calendar is not None:
        return [calendar]
    if given.dtype != pl.String or _share(given, None) >= _NEARLY_ALL:
        return []
    some = given.gather_every(-(-len(given) // _LOOKED_AT))
    fits = [f for f in _PATTERNS if _share(some, f) >= _NEARLY_ALL and _share(given, f) >= _NEARLY_ALL]
    for format in [f for f in fits if f + _FRACTION in fits]:  # the fraction is optional where a pattern has one
        more = _share(given, format + _FRACTION) > _share(given, format)
        fits.remove(format if more else format + _FRACTION)
    return sorted(fits, key=lambda format: _steps_back(given, format))


def check_readable(reader: str, column: str, key: str, values: pl.Series, format: str | None) -> None:
    """Refuse times of which most cannot be read, or that are digits of a calendar with no key that says so.

    Args:
        reader: What holds the times, to name in the error.
        key: The key of the config that says how they are written.
        values: Some of them, of any type.
        format: What that key says.

    Raises:
        UserError: They cannot be read. The sentence shows a value, and names the key and the format to set.
    """
    given = _given(values)
    if given.is_empty() or not (given.dtype == pl.String or given.dtype.is_numeric()):
        return
    calendar = _calendar(given) if format is None else None
    if calendar is None and _share(given, format) > 1 - _MOST:
        return
    read = given.to_frame("x").select(epoch(pl.col("x"), given.dtype, format)).to_series()
    shown = given.filter(read.is_null()).head(1).to_list() or given.head(1).to_list()
    raise UserError(f"{reader}: {column!r} holds times such as {shown[0]!r}{_remedy(key, given, format, calendar)}.")


def _remedy(key: str, given: pl.Series, format: str | None, calendar: str | None) -> str:
    if calendar is not None:
        return (
            f", which look like {calendar} and may be counts of seconds as well: set `{key}: {calendar}` (or "
            "`unix_s` if they are seconds)"
        )
    what = ", which have no known format" if format is None else f", which do not have the format {format!r}"
    formats = formats_of(given)
    if not formats:
        return f"{what}: set `{key}` to a pattern such as '%d.%m.%Y %H:%M', or to one of {', '.join(NAMES)}"
    if len(formats) == 1:
        return f"{what}: set `{key}: {formats[0]!r}`"
    first, second = formats[:2]
    return f"{what}: set `{key}` to {first!r} or {second!r}, whichever order of day and month is right"


def oddities(first: int, last: int, hours: np.ndarray) -> Iterator[str]:
    """What is implausible about the times of a log, one sentence each.

    Args:
        first: The earliest time in microseconds since 1970.
        last: The latest time.
        hours: (N,) distinct whole hours since 1970 that have rows.
    """
    years = [_year(time) for time in (first, last)]
    if years[0] == 1970:
        yield f"the times begin in 1970 ({to_text(first)}): they may be counted in another unit, or not be times"
    if years[1] > datetime.now(UTC).year + 1:
        yield f"the times end in {years[1]} ({to_text(last)}): they may be counted in another unit, or not be times"
    if last - first >= 2 * _DAY and len(np.unique(hours % 24)) == 1:
        yield f"every time is in hour {hours[0] % 24}: an hour of the day says nothing here"
    if last - first >= 14 * _DAY and len(weekdays := np.unique((hours // 24 + 3) % 7)) == 1:
        yield f"every time is on a {_WEEKDAYS[int(weekdays[0])]}: a weekday says nothing here"


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _year(microseconds: int) -> int:
    return int(np.datetime64(microseconds, "us").astype("datetime64[Y]").astype(int)) + 1970


def _given(values: pl.Series) -> pl.Series:
    """``values`` without texts that mean null."""
    values = values.cast(pl.String) if isinstance(values.dtype, pl.Categorical | pl.Enum) else values
    values = values.drop_nulls()
    if values.dtype == pl.String:
        return values.filter(~is_missing(values))
    return values


def _share(given: pl.Series, format: str | None) -> float:
    """Of ``given`` the share that ``format`` reads."""
    read = given.to_frame("x").select(epoch(pl.col("x"), given.dtype, format).is_not_null().mean()).item()
    return float(read)


def _calendar(given: pl.Series) -> str | None:
    """The name of the digits, or of the days, that nearly all of ``given`` are: as counts they may be times of 1970."""
    years = [f"{year}-01-01" for year in (1990, 2101)]
    low, high = pl.Series(years).str.to_datetime(time_unit="us").dt.epoch("us").to_list()
    width = pl.col("x").cast(pl.String).str.strip_chars().str.replace(r"\.0+$", "").str.len_bytes()
    for name in CALENDARS:
        read = epoch(pl.col("x"), given.dtype, name)
        fits = (width == len(name)) & read.is_between(low, high, closed="left")
        if given.to_frame("x").select(fits.fill_null(False).mean()).item() >= _NEARLY_ALL:
            return name
    days = pl.col("x").cast(pl.Float64, strict=False)
    if given.to_frame("x").select(days.is_between(*_EXCEL_DAYS).fill_null(False).mean()).item() >= _NEARLY_ALL:
        return "excel"
    return None


def _steps_back(given: pl.Series, format: str) -> float:
    """Of successive times the share that goes back, as ``format`` reads them."""
    times = given.to_frame("x").select(epoch(pl.col("x"), given.dtype, format)).to_series().drop_nulls()
    back = (times.diff().drop_nulls() < 0).mean()
    return float(back) if isinstance(back, float) else 0.0
