"""Times in the forms that logs write them in, read as microseconds since 1970 (UTC)."""

import polars as pl

from data_pipelines.features.values import MICROSECONDS

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


def epoch(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """``column`` as Int64 microseconds since 1970 (UTC); what cannot be read is null.

    Dates and datetimes are read as they are. Text is read as ISO 8601 and its relatives (slashes, a comma before the
    fraction, `` UTC``, a 12-hour clock), and numbers as seconds, milli-, micro- or nanoseconds since 1970, told apart
    by their size (below 1e11, 1e14, 1e17: years 1973 to 5138 are unambiguous).

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
    if dtype == pl.String:
        return column.map_batches(_read, return_dtype=pl.Int64, is_elementwise=True)
    return _by_size(column, dtype)


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
        read = iso.gather(left).str.to_datetime(format, time_unit="us", strict=False, exact=True).dt.epoch("us")
        found = found.scatter(left, read.set(read < _YEAR_1000, None))
    left = found.is_null().arg_true()
    numbers = values.gather(left).str.strip_chars().cast(pl.Float64, strict=False).to_frame("x")
    return found.scatter(left, numbers.select(_by_size(pl.col("x"), pl.Float64())).to_series())
