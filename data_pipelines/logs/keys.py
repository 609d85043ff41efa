"""The key of each row: a hash of its values in the columns that group rows, such as a user or a user and a genre."""

from collections.abc import Iterable

import polars as pl

from data_pipelines.disk.spill import KEY
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.hashing import key_of


def keyed(plan: Plan, by: Iterable[str], rows: pl.LazyFrame, columns: Iterable[pl.Expr]) -> pl.LazyFrame:
    """``columns`` of each row, with the ``key`` of its values of ``by``.

    Where one of those is a bag, there is one row per distinct element. Rows without a key (a null, an empty bag) are
    left out.
    """
    raw = RawColumns(rows.collect_schema())
    texts: list[pl.Expr] = []
    parts: list[pl.Expr] = []
    bags: list[str] = []
    for i, column in enumerate(by):
        name = f":by{i}"
        bag = plan.bags.get(column)
        if bag is None:
            parts.append(raw.text(f"the past of {column!r}", column).alias(name))
        else:
            parts.append(bag.values(raw).list.unique(maintain_order=True).alias(name))
            bags.append(name)
        texts.append(pl.col(name))
    frame = rows.select(*columns, *parts)
    for bag_column in bags:
        frame = frame.explode(bag_column, empty_as_null=False)
    names = [f":by{i}" for i in range(len(texts))]
    return frame.with_columns(key_of(texts).alias(KEY)).drop(names).drop_nulls(KEY)
