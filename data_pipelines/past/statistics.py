"""Running counts, rates and means over what was strictly earlier, by key.

Values are summed in steps of 2**-16, as integers: sums are exact (below 1.4e14), whatever the order of the rows.
Letters: N rows (or elements of bags of rows) of a timeline.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.disk.spill import ByRow, places
from data_pipelines.features.compiling import Values
from data_pipelines.features.config import DataConfig, StatisticFeature
from data_pipelines.logs.row_counts import MINUTE
from data_pipelines.logs.validation import label
from data_pipelines.names import TIME
from data_pipelines.past.snapshots import Base
from data_pipelines.timelines import Int64s, Timeline, running

STEPS = 1 << 16

Floats = npt.NDArray[np.float64]


def value(config: DataConfig, name: str, values: Values) -> pl.Expr:
    """Int64: what a row adds to a statistic, in steps of 2**-16; null where the row does not count."""
    feature = config.features[name]
    assert isinstance(feature, StatisticFeature)
    if feature.of is None:
        read: pl.Expr = pl.lit(0.0)
    elif feature.of in config.tasks:
        read = label(config, feature.of, values.schema)
    else:
        read = values.number(f"statistic {name!r}", feature.of)
    return (read.cast(pl.Float64) * STEPS).round().clip(-(2.0**46), 2.0**46).cast(pl.Int64).alias(name)


@dataclass(frozen=True)
class Prior:
    """The overall mean of a value before each minute: what a rate is before its key has a past of its own.

    Attributes:
        minutes: (M,) minutes that have rows, rising.
        counts, sums: (M + 1,) rows, and the sum of their values, before each minute and after all.
    """

    minutes: Int64s
    counts: Floats
    sums: Floats

    @staticmethod
    def of(minutes: pl.DataFrame) -> "Prior":
        counts = np.concatenate([[0.0], minutes["count"].cum_sum().to_numpy()])
        sums = np.concatenate([[0.0], minutes["sum"].cast(pl.Int128).cum_sum().cast(pl.Float64).to_numpy()])
        return Prior(minutes["minute"].to_numpy(), counts, sums / STEPS)

    def at(self, times: Int64s, feature: StatisticFeature) -> Floats:
        """The mean before each time; of a rate it starts from one half, and never reaches 0 or 1."""
        place = np.searchsorted(self.minutes, times // MINUTE, side="left")
        if feature.measure == "rate":
            return (self.sums[place] + 0.5) / (self.counts[place] + 1)
        return self.sums[place] / np.maximum(self.counts[place], 1)


def by_minute(rows: pl.LazyFrame, value: pl.Expr) -> pl.LazyFrame:
    """``count`` and ``sum`` of a value in each ``minute`` that has any, rising."""
    return (
        rows.select(value.alias("sum"), minute=pl.col(TIME) // MINUTE)
        .drop_nulls("sum")
        .group_by("minute")
        .agg(pl.len().cast(pl.Int64).alias("count"), pl.col("sum").sum())
        .sort("minute")
    )


def level(feature: StatisticFeature, counts: npt.ArrayLike, sums: npt.ArrayLike, prior: Floats | None) -> Floats:
    """A statistic of each key: the count, or the smoothed mean."""
    counts, means = np.asarray(counts, np.float64), np.asarray(sums, np.float64) / STEPS
    if feature.measure == "count":
        return counts
    assert prior is not None
    return (means + feature.smoothing * prior) / (counts + feature.smoothing)


def finish(
    feature: StatisticFeature, totals: Floats, elements: Floats, prior: Floats | None
) -> npt.NDArray[np.float32]:
    """The feature of each row from the sum of its elements' levels: log1p of a count, log-odds of a rate, a mean.

    A row without elements has no past: count 0, or the prior.
    """
    unknown = 0.0 if prior is None else prior
    mean: Floats = np.where(elements > 0, totals / np.maximum(elements, 1), unknown)
    if feature.measure == "count":
        mean = np.log1p(mean)
    elif feature.measure == "rate":
        mean = np.log(mean / (1 - mean))
    return mean.astype(np.float32)


@dataclass
class Running:
    """Computes one statistic for every row of a log, part by part.

    Attributes:
        rows: Receives the level of each element of each row.
        base: The state that the log goes on from.
    """

    name: str
    feature: StatisticFeature
    prior: Prior | None
    rows: ByRow
    base: Base | None = None

    def add(self, frame: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        """Take in one part of the log; returns ``key``, ``time`` and ``value`` of its rows."""
        added = frame[self.name]
        counted = added.is_not_null().to_numpy()[line.order]
        counts, sums = running(counted), running(added.fill_null(0).to_numpy()[line.order])
        low = line.first if self.feature.window is None else line.since(round(self.feature.window * 1_000_000))
        prior = None if self.prior is None else self.prior.at(line.times, self.feature)
        count, total = counts[line.tie] - counts[low], sums[line.tie] - sums[low]
        if self.base is not None:
            before = self.base.sums(self.name, frame["key"].to_numpy()[line.order], line.times)
            count, total = count + before[0], total + before[1]
        levels = level(self.feature, count, total, prior)
        self.rows.add(frame["row"].to_numpy(), level=line.in_log_order(levels.astype(np.float32)))
        return frame.select("key", "time", value=self.name)


def collect(by_row: ByRow, rows: np.ndarray, end: int) -> tuple[Floats, Floats]:
    """Totals and elements of ``rows`` (rising, all below ``end``)."""
    records: Any = by_row.take(end)
    place = places(rows, records["row"])
    return gather(place, records["level"], len(rows))


def gather(place: Int64s, levels: npt.NDArray[np.float32], rows: int) -> tuple[Floats, Floats]:
    """Sum of the levels at each place, and how many there are."""
    totals = np.bincount(place, weights=levels, minlength=rows)
    return totals.astype(np.float64), np.bincount(place, minlength=rows).astype(np.float64)
