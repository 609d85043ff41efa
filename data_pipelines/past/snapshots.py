"""What must be remembered of the past so that rows yet to come get their histories and statistics.

One Arrow file a feature, its rows by key: the last events of a history with their texts; the events inside the window
of a windowed statistic; or, for each key of a running one, rows and sums before its latest time (``before``,
``before_sum``) and at it (``at``, ``at_sum``), since a row may come at that very time and must not see the latter.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipelines.arrays import to_arrow
from data_pipelines.disk.spill import MEMORY_ROWS
from data_pipelines.features.config import DataConfig, HistoryFeature, StatisticFeature
from data_pipelines.past.histories import remembered
from data_pipelines.timelines import Int64s, Keys, Timeline, running


def condense(config: DataConfig, name: str, past: pl.DataFrame, latest: int) -> pl.DataFrame:
    """What a snapshot keeps of ``past``: rows of one feature with ``key`` and ``time``, in the order of the log.

    Args:
        latest: Time of the last row of the log, in microseconds.
    """
    feature = config.features[name]
    if isinstance(feature, HistoryFeature):
        return remembered(past, feature.last)
    assert isinstance(feature, StatisticFeature)
    past = past.drop_nulls("value")
    if feature.window is not None:
        return past.filter(pl.col("time") >= latest - round(feature.window * 1_000_000)).sort("key", "time")
    line = Timeline.of(past["key"].to_numpy(), past["time"].to_numpy())
    places = line.last_places()
    counts, sums = np.arange(len(past) + 1), running(past["value"].to_numpy()[line.order])
    first, tie = line.first[places], line.tie[places]
    return pl.DataFrame(
        {
            "key": past["key"].to_numpy()[line.order][places],
            "time": line.times[places],
            "before": counts[tie] - counts[first],
            "before_sum": sums[tie] - sums[first],
            "at": counts[places + 1] - counts[tie],
            "at_sum": sums[places + 1] - sums[tie],
        }
    )


def merge(config: DataConfig, name: str, old: pl.DataFrame, new: pl.DataFrame, latest: int) -> pl.DataFrame:
    """The snapshot of a feature after both: ``old`` and ``new`` are each condensed."""
    feature = config.features[name]
    both = pl.concat([old, new])
    if isinstance(feature, HistoryFeature):
        return remembered(both, feature.last)
    assert isinstance(feature, StatisticFeature)
    if feature.window is not None:
        return condense(config, name, both, latest)
    current = pl.col("time") == pl.col("time").max()
    return (
        both.group_by("key")
        .agg(
            pl.col("time").max(),
            before=pl.col("before").sum() + pl.col("at").filter(~current).sum(),
            before_sum=pl.col("before_sum").sum() + pl.col("at_sum").filter(~current).sum(),
            at=pl.col("at").filter(current).sum(),
            at_sum=pl.col("at_sum").filter(current).sum(),
        )
        .sort("key")
    )


def check_columns(config: DataConfig, name: str, found: pl.Schema) -> None:
    """Compare the columns of a feature's snapshot with those that :func:`condense` gives it.

    Raises:
        ValueError: One is missing, or of another type.
    """
    feature = config.features[name]
    wanted: dict[str, pl.DataType]
    if isinstance(feature, HistoryFeature):
        wanted = {f"{name}.{part}": pl.String() for part in feature.of}
    else:
        assert isinstance(feature, StatisticFeature)
        numbers = ("value",) if feature.window is not None else ("before", "before_sum", "at", "at_sum")
        wanted = dict.fromkeys(numbers, pl.Int64())
    for column, dtype in {"key": pl.UInt64(), "time": pl.Int64(), **wanted}.items():
        if found.get(column) != dtype:
            raise ValueError(f"column {column!r} is {found.get(column)}, not {dtype}")


class Base(Protocol):
    """An earlier state to build on (:class:`data_pipelines.past.state.State`)."""

    def frame(self, name: str) -> pl.DataFrame: ...

    def span(self, name: str, low: int, high: int) -> pl.DataFrame: ...

    def sums(self, name: str, keys: Keys, now: Int64s) -> tuple[Int64s, Int64s]: ...

    def minutes(self, name: str) -> pl.DataFrame: ...


@dataclass
class Snapshots:
    """Collects the snapshot of each feature, part by part, in the order of the keys.

    Attributes:
        latest: Time of the last row of the log, in microseconds.
        base: An earlier state that the log goes on from.
        priors: By statistic, ``[minute, rows, sum]`` of all minutes before the last one together, and of the last.
    """

    config: DataConfig
    folder: Path
    latest: int
    base: "Base | None" = None
    priors: dict[str, list[list[int]]] = field(default_factory=dict)
    _writers: dict[str, pa.RecordBatchFileWriter] = field(default_factory=dict)
    _waiting: dict[str, list[pl.DataFrame]] = field(default_factory=dict)

    def add(self, name: str, past: pl.DataFrame, earlier: pl.DataFrame | None) -> None:
        """Add the part of the log that holds a span of keys.

        Args:
            past: One feature's ``key``, ``time`` and what it needs.
            earlier: What ``base`` remembers of those keys.
        """
        condensed = condense(self.config, name, past, self.latest)
        if earlier is not None:
            condensed = merge(self.config, name, earlier, condensed, self.latest)
        waiting = self._waiting.setdefault(name, [])
        waiting.append(condensed)
        if sum(map(len, waiting)) >= MEMORY_ROWS:
            self._write(name)

    def _write(self, name: str) -> None:
        table = to_arrow(pl.concat(self._waiting.pop(name), rechunk=True))
        if name not in self._writers:
            self._writers[name] = pa.ipc.new_file(str(self.folder / f"{name}.arrow"), table.schema)
        self._writers[name].write_table(table)

    def add_prior(self, name: str, minutes: pl.DataFrame) -> pl.DataFrame:
        """Add the rows and sums of each minute, rising, of a statistic's value; returns them with those of ``base``."""
        if self.base is not None:
            minutes = pl.concat([self.base.minutes(name), minutes.cast({"sum": pl.Int128})])
            minutes = minutes.group_by("minute").sum().sort("minute")
        self.priors[name] = _squeeze(minutes)
        return minutes

    def close(self) -> None:
        for name in list(self._waiting):
            self._write(name)
        for writer in self._writers.values():
            writer.close()


def _squeeze(minutes: pl.DataFrame) -> list[list[int]]:
    """``[minute, rows, sum]`` of the last minute, and before it of all others together."""
    early, last = minutes[:-1], minutes[-1:]
    kept = [[int(value) for value in row] for row in last.select("minute", "count", "sum").iter_rows()]
    if len(early):
        kept.insert(0, [int(early["minute"][-1]), int(early["count"].sum()), int(early["sum"].cast(pl.Int128).sum())])
    return kept
