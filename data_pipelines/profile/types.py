"""Which columns of text hold numbers: decided by every row of the log, not by its first ones."""

import polars as pl

from data_pipelines.features.values import MISSING

SURE_SHARE = 0.99
"""Of the values of a column of numbers: a few may be damaged."""
_CODE = r"^[+-]?0\d"
"""A leading zero: ``007`` is a code, not the number 7."""


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
            value.str.contains(_CODE).sum(),
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
