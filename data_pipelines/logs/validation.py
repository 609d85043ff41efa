"""Which rows can be learned from or scored: each gets a reason to be refused, or none.

A row is refused for what makes it meaningless (no readable time, a label out of range), never for an unseen value.
"""

import polars as pl

from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.names import REASON, TIME


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
        added.append(raw.epoch("`time`", plan.time).alias(TIME))
    return rows.with_columns(added)
