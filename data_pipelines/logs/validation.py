"""Validation of rows: each gets a reason to be refused, or null.

A row is refused for what makes it meaningless (no readable time, a label out of range), never for an unseen value.
"""

import warnings

import polars as pl

from data_pipelines.errors import Notice
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.time_formats import check_readable
from data_pipelines.names import REASON, TIME

_LOOKED_AT = 10_000


def check_times(plan: Plan, rows: pl.LazyFrame, location: str) -> None:
    """Refuse a log whose first rows have times that cannot be read, or that may be read in two ways.

    Args:
        location: What the user gave, for messages.

    Raises:
        UserError: A column of times is so; the sentence shows a value and names the key and the format to set.
    """
    there = rows.collect_schema()
    columns = {column: pair for column, pair in plan.times.items() if column in there}
    if columns:
        seen = rows.select(*columns).head(_LOOKED_AT).collect(engine="streaming")
        for column, (key, format) in columns.items():
            check_readable(location, column, key, seen[column], format)


def warn_of_absent_positives(plan: Plan, rows: pl.LazyFrame) -> None:
    """Say (:class:`Notice`) which tasks name values as ``positive`` that no row has, and which values there are."""
    tasks = {name: task for name, task in plan.tasks.items() if task.positive}
    if not tasks:
        return
    raw = RawColumns(rows.collect_schema())
    for name, task in tasks.items():
        positives = rows.select(plan.label(name, raw).alias("label")).filter(pl.col("label") == 1)
        if len(positives.head(1).collect(engine="streaming")):
            continue
        value = raw.text(f"task {name!r}", task.column).alias("value")
        most = rows.select(value).drop_nulls().group_by("value").len().collect(engine="streaming")
        values = ", ".join(map(repr, most.sort("len", "value", descending=[True, False])["value"].head(5)))
        warnings.warn(
            f"task {name!r}: no row has one of its positive values ({', '.join(map(repr, task.positive))}): the column "
            f"{task.column!r} holds {values or 'no value'}; set data.tasks.{name}.positive.",
            Notice,
            stacklevel=3,
        )


def checked(plan: Plan, rows: pl.LazyFrame, *, labelled: bool = True) -> pl.LazyFrame:
    """``rows`` with ``:time`` (when there is a time) and ``:reason``.

    Args:
        labelled: Whether the rows must have labels and a time: those to learn from do, those to score do not.

    Raises:
        UserError: A column is missing or of a type that cannot be read.
    """
    raw = RawColumns(rows.collect_schema())
    refused = [pl.when(bad).then(pl.lit(reason)) for reason, bad in plan.checks(raw, labelled=labelled)]
    added = [pl.coalesce(*refused, pl.lit(None, dtype=pl.String)).alias(REASON)]
    if plan.time is not None and (labelled or plan.time in raw.schema):
        added.append(plan.when(raw).alias(TIME))
    return rows.with_columns(added)
