"""Rows of a data set as they were in the log, with their past: the input of a scorer."""

from pathlib import Path

import polars as pl

from data_pipelines.features.plan import Plan
from data_pipelines.files.base import reading
from data_pipelines.logs import sources
from data_pipelines.names import ROW


def raw_rows(plan: Plan, log: str, stored: pl.DataFrame, events: Path) -> pl.DataFrame:
    """The rows of ``log`` that the rows of a data set were made from, with the columns that ``State.attach`` would add.

    Args:
        stored: Rows as they are in the data set: ``:row``, ``:time``, and what features of the past store.
        events: Its folder of events.
    """
    with reading(log):
        source = sources.scan(plan, log).frame
        wanted = stored.select(ROW).lazy()
        rows = wanted.join(source, on=ROW, how="left", maintain_order="left").collect(engine="streaming")
        past = [
            column for name, feature in plan.past.items() for column in feature.restore(stored, events / name, source)
        ]
    return rows.with_columns(past)
