"""Rows of a data set as they were in the log, with their past beside them: what a scorer would be given."""

from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.arrays import age_bucket, lists, spans
from data_pipelines.dataset.columns import Events
from data_pipelines.features.config import DataConfig, HistoryFeature
from data_pipelines.logs import sources
from data_pipelines.names import LENGTH, ROW, START, TIME
from data_pipelines.past.histories import part_texts
from data_pipelines.past.point_in_time import past_features


def originals(config: DataConfig, log: str, encoded: pl.DataFrame, events: Path) -> pl.DataFrame:
    """The rows of ``log`` that ``encoded`` rows were made from, with the columns that ``State.attach`` would add.

    Args:
        encoded: Rows as they lie in the data set.
        events: Its folder of events.
    """
    with sources.reading(log):
        source = sources.scan(config, log)
        wanted = encoded.select(ROW).lazy()
        rows = wanted.join(source, on=ROW, how="left", maintain_order="left").collect(engine="streaming")
        past: list[pl.Series] = []
        for name, feature in past_features(config).items():
            if isinstance(feature, HistoryFeature):
                past += _history(config, name, feature, source, encoded, Events.open(events / name))
            else:
                past.append(encoded[name])
    return rows.with_columns(past)


def _history(
    config: DataConfig,
    name: str,
    feature: HistoryFeature,
    source: pl.LazyFrame,
    encoded: pl.DataFrame,
    events: Events,
) -> list[pl.Series]:
    lengths = encoded[name + LENGTH].to_numpy().astype(np.int64)
    picked = spans(encoded[name + START].to_numpy().astype(np.int64), lengths)
    rows = pl.DataFrame({ROW: events.rows[picked]})
    distinct = rows.unique().lazy()
    texts = source.select(ROW, *part_texts(config, name, source.collect_schema()))
    found = rows.join(distinct.join(texts, on=ROW, how="left").collect(), on=ROW, how="left", maintain_order="left")
    columns = [lists(f"{name}.{part}", found[f"{name}.{part}"], lengths) for part in feature.of]
    if feature.age:
        ages = age_bucket(np.repeat(encoded[TIME].to_numpy(), lengths) - events.times[picked])
        columns.append(lists(f"{name}.age", pl.Series(ages), lengths))
    return columns
