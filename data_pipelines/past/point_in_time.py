"""The past of a whole log: each row sees only what was strictly earlier."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_pipelines.disk.spill import KEY, partitions
from data_pipelines.features.kinds.past import PastFeature, Worker
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Table
from data_pipelines.logs.keys import keyed
from data_pipelines.names import ROW, TIME
from data_pipelines.past.snapshots import Snapshots
from data_pipelines.timelines import Timeline


@dataclass
class Past:
    """The past of every row of a log, ready to be taken in the order of the rows."""

    workers: dict[str, Worker] = field(default_factory=dict)

    def take(self, rows: np.ndarray, times: np.ndarray) -> list[pl.Series]:
        """The columns of ``rows``: all that were not taken before, up to the last of them."""
        return [column for worker in self.workers.values() for column in worker.take(rows, times)] if len(rows) else []


def compute(
    plan: Plan,
    rows: pl.LazyFrame,
    size: int,
    tables: Mapping[str, Table],
    folder: Path,
    scratch: Path,
    snapshots: Snapshots,
) -> Past:
    """Work out the past of each of the ``size`` accepted rows.

    Encoded events are written to ``folder/events``, data for new rows to ``snapshots``, temporary files to ``scratch``.
    """
    everyone: dict[str, Worker] = {}
    for by, features in plan.past_by_key.items():
        workers = {
            name: feature.begin(tables, folder / "events" / name, scratch / name, snapshots.add_minutes(name, rows))
            for name, feature in features.items()
        }
        for part in partitions(_keyed(plan, by, rows, features.values(), ROW), size, scratch):
            line = Timeline.of(part.rows[KEY].to_numpy(), part.rows["time"].to_numpy())
            for name, worker in workers.items():
                earlier = None if snapshots.base is None else snapshots.base.span(name, part.low, part.high)
                snapshots.add(name, worker.add(part.rows, line, earlier), earlier)
        everyone |= workers
    snapshots.add_delivered(rows)
    # Columns of one kind stand together in a data set, whatever keys they are of.
    in_order = sorted(everyone, key=lambda name: plan.past[name].config.kind_name() or "")
    return Past({name: everyone[name] for name in in_order})


def remember(plan: Plan, rows: pl.LazyFrame, snapshots: Snapshots) -> None:
    """Only the snapshots of :func:`compute`."""
    for by, features in plan.past_by_key.items():
        frame = _keyed(plan, by, rows, features.values()).collect()
        for name, feature in features.items():
            snapshots.add_minutes(name, rows)
            snapshots.add(name, feature.events(frame), None if snapshots.base is None else snapshots.base.frame(name))
    snapshots.add_delivered(rows)


def _keyed(
    plan: Plan, by: tuple[str, ...], rows: pl.LazyFrame, features: Iterable[PastFeature[Any]], *numbered: str
) -> pl.LazyFrame:
    """``key``, ``time``, the ``numbered`` column as ``row``, and what the features need of each row."""
    raw = RawColumns(rows.collect_schema())
    read = [column for feature in features for column in feature.past_columns(raw)]
    numbers = [pl.col(name).alias("row") for name in numbered]
    return keyed(plan, by, rows, [pl.col(TIME).alias("time"), *numbers, *read])
