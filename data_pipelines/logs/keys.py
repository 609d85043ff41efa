"""The key of each row: a hash of its values in the columns that group rows, such as a user or a user and a genre."""

from collections.abc import Iterable

import polars as pl

from data_pipelines.disk.spill import KEY
from data_pipelines.features.compiling import Values
from data_pipelines.features.config import BagFeature, DataConfig
from data_pipelines.hashing import key_of


def keyed(config: DataConfig, by: Iterable[str], rows: pl.LazyFrame, columns: Iterable[pl.Expr]) -> pl.LazyFrame:
    """``columns`` of each row beside the ``key`` of its values of ``by``; a row a distinct element where one is a bag.

    Rows without a key (a null, an empty bag) are left out.
    """
    values = Values(config, rows.collect_schema())
    texts: list[pl.Expr] = []
    parts: list[pl.Expr] = []
    bags: list[str] = []
    for i, column in enumerate(by):
        name = f"__by{i}"
        bag = next((n for n, f in config.features.items() if isinstance(f, BagFeature) and f.column == column), None)
        if bag is None:
            parts.append(values.text(f"the past of {column!r}", column).alias(name))
        else:
            parts.append(values.of(bag).list.unique(maintain_order=True).alias(name))
            bags.append(name)
        texts.append(pl.col(name))
    frame = rows.select(*columns, *parts)
    for bag_column in bags:
        frame = frame.explode(bag_column, empty_as_null=False)
    names = [f"__by{i}" for i in range(len(texts))]
    return frame.with_columns(key_of(texts).alias(KEY)).drop(names).drop_nulls(KEY)
