"""Which columns of text hold numbers, decided by every row of the log, and which columns hold times."""

import re

import polars as pl

from data_pipelines.features.time_formats import formats_of
from data_pipelines.features.times import epoch
from data_pipelines.features.values import MISSING

SURE_SHARE = 0.99
"""Of the values of a column of numbers or times: a few may be damaged."""
CODE = r"^\s*[+-]?0\d"
"""A leading zero: ``007`` is a code, not the number 7."""


_TIME_NAME = r"(?i)time|date|datum|zeit|day|hour|when|^ts$|_at$"
_TIME_TEXT = r"^\s*\w.{4,38}\d(\s*[AaPp][Mm])?\s*$"
_LOOKED_AT = 5000


def with_times(frame: pl.LazyFrame, rows: int) -> tuple[pl.LazyFrame, dict[str, tuple[str, ...]]]:
    """``frame`` with its columns of times that need a ``time_format`` as datetimes, and their formats by column.

    A column has several formats if the order of day and month is open: it is read by the first of them.

    Args:
        rows: How many rows there are.
    """
    typed = pl.selectors.string() | pl.selectors.numeric()
    sample = frame.select(typed).gather_every(-(-rows // _LOOKED_AT)).collect(engine="streaming")
    found = {}
    for column in sample:
        given = column.drop_nulls()
        if column.dtype == pl.String and not given.str.contains(_TIME_TEXT).all():
            continue
        formats = formats_of(given) if given.n_unique() > 1 else []
        named = re.search(_TIME_NAME, column.name) is not None
        if formats and (named or (formats != ["excel"] and column.dtype == pl.String)):
            found[column.name] = tuple(formats)
    schema = frame.collect_schema()
    read = [epoch(pl.col(name), schema[name], formats[0]).cast(pl.Datetime("us")) for name, formats in found.items()]
    return frame.with_columns(read), found


def with_numbers(frame: pl.LazyFrame) -> pl.LazyFrame:
    """``frame`` with its columns of text that hold numbers as Int64 or Float64; what is not a number there is null.

    A column holds numbers where at least 99% of its values are, and none has a leading zero.
    """
    names = [name for name, dtype in frame.collect_schema().items() if dtype == pl.String]
    if not names:
        return frame
    found = frame.select(
        pl.concat_arr(
            value.is_in(MISSING).not_().sum(),
            value.cast(pl.Float64, strict=False).is_not_null().sum(),
            value.cast(pl.Int64, strict=False).is_not_null().sum(),
            value.str.contains(CODE).sum(),
        ).alias(name)
        for name in names
        for value in (pl.col(name).str.strip_chars().str.to_lowercase(),)
    ).collect(engine="streaming")
    casts = []
    for name in names:
        given, floats, integers, codes = found[name].to_list()[0]
        if given and not codes and floats >= SURE_SHARE * given:
            dtype = pl.Int64() if integers == floats else pl.Float64()
            casts.append(pl.col(name).str.strip_chars().cast(dtype, strict=False))
    return frame.with_columns(casts)
