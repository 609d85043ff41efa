"""Histories and statistics of a whole log: each row sees what was strictly earlier, and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.disk.spill import KEY, ByRow, partitions, places
from data_pipelines.features.compiling import Values
from data_pipelines.features.config import DataConfig, HistoryFeature, StatisticFeature
from data_pipelines.features.vocabulary import Table
from data_pipelines.logs.keys import keyed
from data_pipelines.names import LENGTH, ROW, START, TIME
from data_pipelines.past import histories, statistics
from data_pipelines.past.histories import Slices
from data_pipelines.past.snapshots import Snapshots
from data_pipelines.past.statistics import Prior, Running
from data_pipelines.timelines import Timeline

PastFeature = HistoryFeature | StatisticFeature


def past_features(config: DataConfig) -> dict[str, PastFeature]:
    """The features that depend on earlier rows."""
    return {n: f for n, f in config.features.items() if isinstance(f, HistoryFeature | StatisticFeature)}


def groups(config: DataConfig) -> dict[tuple[str, ...], list[str]]:
    """The features that depend on the past, by the columns that say whose past it is."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, feature in past_features(config).items():
        by = (feature.entity,) if isinstance(feature, HistoryFeature) else tuple(feature.by)
        found.setdefault(by, []).append(name)
    return found


@dataclass
class Past:
    """The past of every row of a log, ready to be taken in the order of the rows."""

    histories: dict[str, ByRow] = field(default_factory=dict)
    statistics: dict[str, tuple[StatisticFeature, Prior | None, ByRow]] = field(default_factory=dict)

    def take(self, rows: np.ndarray, times: np.ndarray) -> list[pl.Series]:
        """The columns of ``rows``: all that were not taken before, up to the last of them."""
        if not len(rows):
            return []
        columns, end = [], int(rows[-1]) + 1
        for name, by_row in self.histories.items():
            records = by_row.take(end)
            place = places(rows, records["row"])
            for suffix, values in ((START, records["start"]), (LENGTH, records["length"])):
                column = np.zeros(len(rows), np.uint32)
                column[place] = values
                columns.append(pl.Series(name + suffix, column))
        for name, (feature, prior, by_row) in self.statistics.items():
            totals, elements = statistics.collect(by_row, rows, end)
            before = None if prior is None else prior.at(times, feature)
            columns.append(pl.Series(name, statistics.finish(feature, totals, elements, before)))
        return columns


def compute(
    config: DataConfig,
    rows: pl.LazyFrame,
    size: int,
    tables: Mapping[str, Table],
    folder: Path,
    scratch: Path,
    snapshots: Snapshots,
) -> Past:
    """Work out the past of each of the ``size`` accepted rows.

    Encoded events go to ``folder/events``, what new rows need to ``snapshots``, what is only for now to ``scratch``.
    """
    past = Past()
    for by, names in groups(config).items():
        workers: dict[str, Running | Slices] = {}
        for name in names:
            feature = config.features[name]
            if isinstance(feature, HistoryFeature):
                past.histories[name] = ByRow(scratch / name, [("start", "<u4"), ("length", "<u4")])
                parts = {part: tables[config.features[part].table] for part in feature.of}  # type: ignore[union-attr]
                workers[name] = Slices(name, feature, parts, folder / "events" / name, past.histories[name])
            else:
                assert isinstance(feature, StatisticFeature)
                prior = _prior(config, name, rows, snapshots)
                by_row = ByRow(scratch / name, [("level", "<f4")])
                past.statistics[name] = (feature, prior, by_row)
                workers[name] = Running(name, feature, prior, by_row, snapshots.base)
        frame = keyed(
            config, by, rows, [pl.col(TIME).alias("time"), pl.col(ROW).alias("row"), *_read(config, names, rows)]
        )
        for part in partitions(frame, size, scratch):
            line = Timeline.of(part.rows[KEY].to_numpy(), part.rows["time"].to_numpy())
            for name, worker in workers.items():
                earlier = None if snapshots.base is None else snapshots.base.span(name, part.low, part.high)
                snapshots.add(name, worker.add(part.rows, line, earlier), earlier)
    return past


def remember(config: DataConfig, rows: pl.LazyFrame, snapshots: Snapshots) -> None:
    """Only the snapshots of :func:`compute`."""
    for by, names in groups(config).items():
        frame = keyed(config, by, rows, [pl.col(TIME).alias("time"), *_read(config, names, rows)]).collect()
        for name in names:
            feature = config.features[name]
            if isinstance(feature, HistoryFeature):
                events = histories.events(name, feature, frame)
            else:
                _prior(config, name, rows, snapshots)
                events = frame.select(KEY, "time", value=name)
            snapshots.add(name, events, None if snapshots.base is None else snapshots.base.frame(name))


def _read(config: DataConfig, names: Iterable[str], rows: pl.LazyFrame) -> Iterator[pl.Expr]:
    values = Values(config, rows.collect_schema())
    for name in names:
        if isinstance(config.features[name], HistoryFeature):
            yield from histories.columns(config, name, values)
        else:
            yield statistics.value(config, name, values)


def _prior(config: DataConfig, name: str, rows: pl.LazyFrame, snapshots: Snapshots) -> Prior | None:
    feature = config.features[name]
    assert isinstance(feature, StatisticFeature)
    if feature.measure == "count":
        return None
    value = statistics.value(config, name, Values(config, rows.collect_schema()))
    minutes = statistics.by_minute(rows, value).collect(engine="streaming")
    return Prior.of(snapshots.add_prior(name, minutes))
