"""Which rows of a log come last, as a test split will hold them, and columns that are functions of time."""

import polars as pl

from data_pipelines.features.times import epoch
from data_pipelines.features.values import text
from data_pipelines.hashing import spread
from data_pipelines.logs.splits import NAMED_SPLITS
from data_pipelines.names import ROW
from data_pipelines.profile.roles import Roles

LATEST_SHARE = 0.1
MOST_UNSEEN = 0.95
"""Share of unseen values in the latest rows from which a column says nothing about new rows."""
_MOST_STRETCHES = 1000


def latest_rows(frame: pl.LazyFrame, roles: Roles) -> tuple[pl.Expr, str]:
    """Whether a row of ``frame`` (with row numbers ``:row``) is one of the latest, and what to call these.

    They are the test rows of the split that a starter config has: the latest tenth by time; those of a split column;
    or, without either, an even tenth.
    """
    schema = frame.collect_schema()
    if roles.split is not None:
        named = text(pl.col(roles.split), schema[roles.split]).str.to_lowercase()
        tests = [name for name, split in NAMED_SPLITS.items() if split == "test"]
        held_out = named.is_in(tests)
        if not frame.select(held_out.any()).collect(engine="streaming").item():
            held_out = named.is_in([name for name, split in NAMED_SPLITS.items() if split == "valid"])
        return held_out.fill_null(False), "test rows"
    if roles.time is not None:
        when = epoch(pl.col(roles.time), schema[roles.time])
        times = frame.select(cut=when.quantile(1 - LATEST_SHARE, "lower"), first=when.min(), last=when.max()).collect(
            engine="streaming"
        )
        cut, first, last = (None if value is None else int(value) for value in times.row(0))
        if cut is not None and first is not None and last is not None and first < last:
            return (when > cut if cut < last else when >= cut).fill_null(False), "latest tenth"
    return spread(pl.col(ROW), LATEST_SHARE), "random tenth"


def stretches(values: pl.Series, times: pl.Series) -> bool:
    """Whether every value of a column occurs in one stretch of time only, such as a month, or a version number.

    Args:
        values: (N,) its values.
        times: (N,) times of the rows.
    """
    rows = pl.DataFrame({"time": times, "value": values}).drop_nulls()
    distinct = rows["value"].n_unique()
    if not 2 <= distinct <= min(_MOST_STRETCHES, len(rows) // 10):
        return False
    spans = rows.group_by("value").agg(first=pl.col("time").min(), last=pl.col("time").max()).sort("first", "last")
    follows = spans["first"] > spans["last"].cum_max().shift(1)
    return bool(follows.drop_nulls().all())
