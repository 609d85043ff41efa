"""What must be kept of the past so that rows yet to come get the features that depend on it.

One Arrow file per feature, its rows by key, in the form that its kind condenses them to.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from data_pipelines.arrays import to_arrow
from data_pipelines.disk.spill import MEMORY_ROWS
from data_pipelines.features.kinds.past import PastFeature
from data_pipelines.features.plan import Plan
from data_pipelines.past.deliveries import Counted, remembered
from data_pipelines.timelines import MINUTE

DELIVERED = "delivered.keys.arrow"
"""Keys of events; no feature has a dot in its name."""


class Base(Counted, Protocol):
    """An earlier state to build on (:class:`data_pipelines.past.state.State`)."""

    def frame(self, name: str) -> pl.DataFrame: ...

    def span(self, name: str, low: int, high: int) -> pl.DataFrame: ...

    def minutes(self, name: str) -> pl.DataFrame | None: ...


@dataclass
class Snapshots:
    """Collects the snapshot of each feature, part by part, in the order of the keys.

    Attributes:
        latest: Time of the last row of the log, in microseconds.
        base: An earlier state that the log continues.
        priors: By feature that needs totals over all keys, ``[minute, rows, sum]`` of the last minute and of those
            whose labels are not known yet, and of all minutes before them together.
    """

    plan: Plan
    folder: Path
    latest: int
    base: "Base | None" = None
    priors: dict[str, list[list[int]]] = field(default_factory=dict)
    _writers: dict[str, pa.RecordBatchFileWriter] = field(default_factory=dict)
    _waiting: dict[str, list[pl.DataFrame]] = field(default_factory=dict)

    def add(self, name: str, condensed: pl.DataFrame) -> None:
        """Add what a state keeps of one feature and a span of keys: see :func:`condense`."""
        waiting = self._waiting.setdefault(name, [])
        waiting.append(condensed)
        if sum(map(len, waiting)) >= MEMORY_ROWS:
            self._write(name)

    def _write(self, name: str) -> None:
        table = to_arrow(pl.concat(self._waiting.pop(name), rechunk=True))
        if name not in self._writers:
            self._writers[name] = pa.ipc.new_file(str(self.folder / f"{name}.arrow"), table.schema)
        self._writers[name].write_table(table)

    def add_minutes(self, name: str, minutes: pl.DataFrame | None) -> pl.DataFrame | None:
        """Add a feature's totals of each minute of the log; returns them with those of ``base``, minutes ascending."""
        if minutes is None:
            return None
        before = None if self.base is None else self.base.minutes(name)
        if before is not None:
            minutes = pl.concat([before, minutes.cast({"sum": pl.Int128})])
            minutes = minutes.group_by("minute").sum().sort("minute")
        self.priors[name] = _squeeze(minutes, self.latest - self.plan.past[name].config.delay)
        return minutes

    def add_delivered(self, rows: pl.LazyFrame) -> None:
        """Write the keys of the events of the log, and of those of ``base``, that may be delivered again."""
        keys = remembered(self.plan, rows, self.base, self.latest)
        if keys is not None:
            with pa.ipc.new_file(str(self.folder / DELIVERED), to_arrow(keys).schema) as writer:
                writer.write_table(to_arrow(keys))

    def close(self) -> None:
        for name in list(self._waiting):
            self._write(name)
        for writer in self._writers.values():
            writer.close()


def condense(feature: PastFeature[Any], past: pl.DataFrame, earlier: pl.DataFrame | None, latest: int) -> pl.DataFrame:
    """What a state keeps of one feature and a span of keys, in the order of the keys.

    Args:
        past: ``key``, ``time`` and what the feature needs of the rows of the log.
        earlier: What the state that the log continues keeps of those keys; ``None`` without such a state.
        latest: Time of the last row of the log, in microseconds.
    """
    condensed = feature.condense(past, latest)
    return condensed if earlier is None else feature.merge(earlier, condensed, latest)


def _squeeze(minutes: pl.DataFrame, known: int) -> list[list[int]]:
    """``[minute, rows, sum]`` of the last minute and of those not before ``known``, and of all others together."""
    recent = max(1, int((minutes["minute"] >= known // MINUTE).sum()))
    early, last = minutes.head(-recent), minutes.tail(recent)
    kept = [[int(value) for value in row] for row in last.select("minute", "count", "sum").iter_rows()]
    if len(early):
        kept.insert(0, [int(early["minute"][-1]), int(early["count"].sum()), int(early["sum"].cast(pl.Int128).sum())])
    return kept
