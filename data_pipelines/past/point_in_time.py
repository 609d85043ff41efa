"""The past of a whole log: each row sees only what was strictly earlier."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_pipelines.disk.by_row import ByRow, Records
from data_pipelines.disk.spill import KEY, Partition, partitions
from data_pipelines.features.kinds.past import PastFeature, Worker
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Table
from data_pipelines.logs.keys import keyed
from data_pipelines.names import ROW, TIME
from data_pipelines.past.snapshots import Base, Snapshots, condense
from data_pipelines.timelines import Timeline


@dataclass(frozen=True)
class Stored:
    """The past of one feature, row by row.

    Attributes:
        minutes: The totals of each minute, if the feature needs them.
    """

    feature: PastFeature[Any]
    records: Records
    minutes: pl.DataFrame | None


@dataclass(frozen=True)
class Past:
    """The past of every row of a log, ready to be taken."""

    stored: tuple[Stored, ...] = ()

    @staticmethod
    def of(stored: Mapping[str, Stored]) -> "Past":
        """Columns of one kind stand together in a data set, whatever keys they are of."""
        return Past(tuple(sorted(stored.values(), key=lambda own: own.feature.config.kind_name() or "")))

    def take(self, rows: np.ndarray, times: np.ndarray) -> list[pl.Series]:
        """The columns of ``rows``, whose records can be taken now (:class:`data_pipelines.disk.by_row.Records`)."""
        if not len(rows):
            return []
        return [
            column
            for own in self.stored
            for column in own.feature.gather(own.records.take(rows), rows, times, own.minutes)
        ]


def compute(
    plan: Plan,
    rows: pl.LazyFrame,
    size: int,
    tables: Mapping[str, Table],
    folder: Path,
    scratch: Path,
    snapshots: Snapshots,
) -> Past:
    """Work out the past of each of the ``size`` accepted rows, to be taken once, in the order of the rows.

    Encoded events are written to ``folder/events``, data for new rows to ``snapshots``, temporary files to ``scratch``.
    """
    stored: dict[str, Stored] = {}
    for by, features in plan.past_by_key.items():
        workers: dict[str, Worker] = {}
        for name, feature in features.items():
            minutes = snapshots.add_minutes(name, feature.minutes(rows))
            records = ByRow(scratch / name, feature.fields)
            workers[name] = feature.begin(tables, folder / "events" / name, records, minutes)
            stored[name] = Stored(feature, records, minutes)
        parts = partitions(keyed_rows(plan, by, rows, features.values(), ROW), size, scratch)
        for name, condensed in work_out(workers, features, parts, snapshots.base, snapshots.latest):
            snapshots.add(name, condensed)
    snapshots.add_delivered(rows)
    return Past.of(stored)


def work_out(
    workers: Mapping[str, Worker],
    features: Mapping[str, PastFeature[Any]],
    parts: Iterable[Partition],
    base: Base | None,
    latest: int,
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Have each worker take in each part; gives by feature what a state keeps of the part."""
    for part in parts:
        line = Timeline.of(part.rows[KEY].to_numpy(), part.rows["time"].to_numpy())
        for name, worker in workers.items():
            earlier = None if base is None else base.span(name, part.low, part.high)
            yield name, condense(features[name], worker.add(part.rows, line, earlier), earlier, latest)


def remember(plan: Plan, rows: pl.LazyFrame, snapshots: Snapshots) -> None:
    """Only the snapshots of :func:`compute`."""
    for by, features in plan.past_by_key.items():
        frame = keyed_rows(plan, by, rows, features.values()).collect()
        for name, feature in features.items():
            snapshots.add_minutes(name, feature.minutes(rows))
            earlier = None if snapshots.base is None else snapshots.base.frame(name)
            snapshots.add(name, condense(feature, feature.events(frame), earlier, snapshots.latest))
    snapshots.add_delivered(rows)


def keyed_rows(
    plan: Plan, by: tuple[str, ...], rows: pl.LazyFrame, features: Iterable[PastFeature[Any]], *numbered: str
) -> pl.LazyFrame:
    """``key``, ``time``, the ``numbered`` column as ``row``, and what the features need of each row."""
    raw = RawColumns(rows.collect_schema())
    read = [column for feature in features for column in feature.past_columns(raw)]
    numbers = [pl.col(name).alias("row") for name in numbered]
    return keyed(plan, by, rows, [pl.col(TIME).alias("time"), *numbers, *read])
