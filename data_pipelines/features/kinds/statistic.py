"""The kind ``statistic``: a running count, rate or mean over what was strictly earlier, by key.

Values are summed in steps of 2**-16, as integers: sums are exact (below 1.4e14), whatever the order of the rows.
Letters: N rows (or elements of bags of rows) of a timeline.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from data_pipelines.config.base import register
from data_pipelines.config.learning import Task
from data_pipelines.disk.by_row import ByRow, Fields, places
from data_pipelines.features.kinds.past import DelayedConfig, Kept, PastNumber, happened
from data_pipelines.features.labels import label
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Table
from data_pipelines.names import POSITIVE, TIME
from data_pipelines.timelines import MINUTE, Int64s, Keys, Timeline, bisect, find, running

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

_STEPS = 1 << 16

Floats = npt.NDArray[np.float64]


@register
class StatisticConfig(DelayedConfig):
    """A running statistic of the rows strictly earlier than the row that share its ``by`` columns."""

    kind: Literal["statistic"] = "statistic"
    measure: Literal["count", "rate", "mean"] = Field(
        description="`count`: log1p of the number of rows. `rate`: log-odds of the smoothed rate of a binary task. "
        "`mean`: the smoothed mean."
    )
    of: str | None = Field(default=None, description="A task, or a column of numbers; not needed for `count`.")
    by: list[str] = Field(
        min_length=1,
        description="Columns. One of them may be that of a bag feature: then the statistic is the mean over its "
        "elements.",
    )
    smoothing: float = Field(
        default=20.0, gt=0, description="Rows at the running overall rate (or mean) that each key starts with."
    )
    window: float | None = Field(default=None, gt=0, description="Seconds; rows that are older do not count.")

    @model_validator(mode="after")
    def _needs_of(self) -> "StatisticConfig":
        if self.measure != "count" and self.of is None:
            raise ValueError(f"measure {self.measure} needs the key `of`: a task or a column of numbers")
        return self

    @property
    def microseconds(self) -> int | None:
        """The window in microseconds; ``None`` if there is none."""
        return None if self.window is None else round(self.window * 1_000_000)

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        yield from super().problems(name, data)
        if self.measure == "rate":
            task = data.tasks.get(self.of or "")
            if task is None or task.kind != "binary":
                yield f"feature `{name}`: a rate needs a binary task, and `{self.of}` is not one"
        of_tasks = data.tasks[self.of].column if self.of in data.tasks else self.of
        if data.drawing is not None and of_tasks == POSITIVE:
            yield (
                f"feature `{name}`: statistics count the rows of the log, not the negatives drawn for them, so "
                f"`{self.of}` is 1 in all that they see: use `measure: count` without `of`"
            )

    def build(self, name: str, data: "DataConfig") -> "StatisticFeature":
        return StatisticFeature(name, self, data.tasks.get(self.of or ""))


class StatisticFeature(PastNumber[StatisticConfig]):
    """One number per row.

    Attributes:
        task: The task that ``of`` names; ``None`` where it names a column, or nothing.
    """

    def __init__(self, name: str, config: StatisticConfig, task: Task | None) -> None:
        super().__init__(name, config)
        self.reader = f"statistic {name!r}"
        self.task = task

    @property
    def by(self) -> tuple[str, ...]:
        return tuple(self.config.by)

    def log_columns(self) -> frozenset[str]:
        return self.columns() if self.config.of is None else self.columns() | {self.config.of}

    def past_columns(self, raw: RawColumns) -> list[pl.Expr]:
        return [self._value(raw).alias(self.name)]

    def _value(self, raw: RawColumns) -> pl.Expr:
        """Int64: what a row adds, in steps of 2**-16; null where the row does not count."""
        if self.config.of is None:
            read: pl.Expr = pl.lit(0.0)
        elif self.task is not None:
            read = label(self.config.of, self.task, raw)
        else:
            read = raw.number(self.reader, self.config.of)
        steps = (read.cast(pl.Float64) * _STEPS).round().clip(-(2.0**46), 2.0**46).cast(pl.Int64)
        return pl.when(happened(raw)).then(steps)

    def minutes(self, rows: pl.LazyFrame) -> pl.DataFrame | None:
        if self.config.measure == "count":
            return None
        value = self._value(RawColumns(rows.collect_schema()))
        return (
            rows.select(value.alias("sum"), minute=pl.col(TIME) // MINUTE)
            .drop_nulls("sum")
            .group_by("minute")
            .agg(pl.len().cast(pl.Int64).alias("count"), pl.col("sum").sum())
            .sort("minute")
            .collect(engine="streaming")
        )

    @property
    def fields(self) -> Fields:
        return (("level", "<f4"),)

    def begin(
        self, tables: Mapping[str, Table], events: Path, records: ByRow, minutes: pl.DataFrame | None
    ) -> "Running":
        return Running(self, Prior.of(minutes), records)

    def gather(
        self, records: np.ndarray, rows: np.ndarray, times: np.ndarray, minutes: pl.DataFrame | None
    ) -> list[pl.Series]:
        totals, elements = _by_place(places(rows, records["row"]), records["level"], len(rows))
        prior = self.prior(Prior.of(minutes), times - self.config.delay)
        return [self.finish(totals, elements, prior)]

    def events(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("key", "time", value=self.name)

    def condense(self, past: pl.DataFrame, latest: int) -> pl.DataFrame:
        """The rows inside the window; without a window, for each key rows and sums before its latest time (``before``,
        ``before_sum``) and at it (``at``, ``at_sum``): a row may come at that very time and must not see the latter."""
        past = past.drop_nulls("value")
        if self.config.microseconds is not None:
            oldest = latest - self.config.microseconds - self.config.delay
            return past.filter(pl.col("time") >= oldest).sort("key", "time")
        if self.config.delay:
            return self._summed(past.select("key", "time", pl.lit(1, pl.Int64).alias("count"), sum="value"), latest)
        line = Timeline.of(past["key"].to_numpy(), past["time"].to_numpy())
        ends = line.last_places()
        counts, sums = np.arange(len(past) + 1), running(past["value"].to_numpy()[line.order])
        first, tie = line.first[ends], line.tie[ends]
        return pl.DataFrame(
            {
                "key": past["key"].to_numpy()[line.order][ends],
                "time": line.times[ends],
                "before": counts[tie] - counts[first],
                "before_sum": sums[tie] - sums[first],
                "at": counts[ends + 1] - counts[tie],
                "at_sum": sums[ends + 1] - sums[tie],
            }
        )

    @property
    def kept_columns(self) -> Mapping[str, pl.DataType]:
        names: tuple[str, ...] = ("before", "before_sum", "at", "at_sum")
        if self.config.window is not None:
            names = ("value",)
        elif self.config.delay:
            names = ("count", "sum")
        return dict.fromkeys(names, pl.Int64())

    @property
    def needs_minutes(self) -> bool:
        return self.config.measure != "count"

    def merge(self, old: pl.DataFrame, new: pl.DataFrame, latest: int) -> pl.DataFrame:
        both = pl.concat([old, new])
        if self.config.window is not None:
            return self.condense(both, latest)
        if self.config.delay:
            return self._summed(both, latest)
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

    def _summed(self, rows: pl.DataFrame, latest: int) -> pl.DataFrame:
        """``count`` and ``sum`` of each key and time; rows that every later row sees are one row of each key."""
        known = pl.col("time") < latest - self.config.delay
        return (
            rows.group_by("key", pl.when(known).then(None).otherwise(pl.col("time")).alias("part"))
            .agg(pl.col("time").max(), pl.col("count").sum(), pl.col("sum").sum())
            .drop("part")
            .sort("key", "time")
        )

    def attach(self, kept: Kept, keys: Keys, places: Int64s, times: Int64s) -> list[pl.Series]:
        known_until = times - self.config.delay
        counts, sums = self.totals(kept.rows, keys, known_until[places])
        prior = self.prior(Prior.of(kept.minutes), known_until)
        levels = self.level(counts, sums, None if prior is None else prior[places])
        totals, elements = _by_place(places, levels.astype(np.float32), len(times))
        return [self.finish(totals, elements, prior)]

    def totals(self, kept: pl.DataFrame, keys: Keys, now: Int64s) -> tuple[Int64s, Int64s]:
        """Rows of each key strictly before ``now`` (in the window, if there is one), and their sums."""
        times = kept["time"].to_numpy()
        if self.config.microseconds is not None or self.config.delay:
            low = np.searchsorted(kept["key"].to_numpy(), keys, side="left").astype(np.int64)
            high = np.searchsorted(kept["key"].to_numpy(), keys, side="right").astype(np.int64)
            end = bisect(times, low, high, now)
            if self.config.microseconds is None:
                counts, sums = running(kept["count"].to_numpy()), running(kept["sum"].to_numpy())
                return counts[end] - counts[low], sums[end] - sums[low]
            start = bisect(times, low, high, now - self.config.microseconds)
            sums = running(kept["value"].to_numpy())
            return end - start, sums[end] - sums[start]
        if kept.is_empty():
            return np.zeros_like(now), np.zeros_like(now)
        place, known = find(kept["key"].to_numpy(), keys)
        later = times[place] < now
        counts = kept["before"].to_numpy()[place] + later * kept["at"].to_numpy()[place]
        sums = kept["before_sum"].to_numpy()[place] + later * kept["at_sum"].to_numpy()[place]
        return known * counts, known * sums

    def prior(self, prior: "Prior | None", times: Int64s) -> Floats | None:
        """The overall mean before each time; of a rate it starts from one half, and never reaches 0 or 1."""
        if prior is None:
            return None
        counts, sums = prior.before(times)
        if self.config.measure == "rate":
            return (sums + 0.5) / (counts + 1)
        return sums / np.maximum(counts, 1)

    def level(self, counts: npt.ArrayLike, sums: npt.ArrayLike, prior: Floats | None) -> Floats:
        """The statistic of each key: the count, or the smoothed mean."""
        rows, total = np.asarray(counts, np.float64), np.asarray(sums, np.float64) / _STEPS
        if prior is None:
            return rows
        return (total + self.config.smoothing * prior) / (rows + self.config.smoothing)

    def finish(self, totals: Floats, elements: Floats, prior: Floats | None) -> pl.Series:
        """The feature of each row from the sum of its elements' levels: log1p of a count, log-odds of a rate, a mean.

        A row without elements has no past: count 0, or the prior.
        """
        unknown = 0.0 if prior is None else prior
        mean: Floats = np.where(elements > 0, totals / np.maximum(elements, 1), unknown)
        if self.config.measure == "count":
            mean = np.log1p(mean)
        elif self.config.measure == "rate":
            mean = np.log(mean / (1 - mean))
        return pl.Series(self.name, mean.astype(np.float32))


@dataclass(frozen=True)
class Prior:
    """Totals over all keys before each minute: what a rate is before its key has a past of its own.

    Attributes:
        minutes: (M,) minutes that have rows, ascending.
        counts, sums: (M + 1,) rows, and the sum of their values, before each minute and after all.
    """

    minutes: Int64s
    counts: Floats
    sums: Floats

    @staticmethod
    def of(minutes: pl.DataFrame | None) -> "Prior | None":
        if minutes is None:
            return None
        counts = np.concatenate([[0.0], minutes["count"].cum_sum().to_numpy()])
        sums = np.concatenate([[0.0], minutes["sum"].cast(pl.Int128).cum_sum().cast(pl.Float64).to_numpy()])
        return Prior(minutes["minute"].to_numpy(), counts, sums / _STEPS)

    def before(self, times: Int64s) -> tuple[Floats, Floats]:
        """Rows before the minute of each time, and the sum of their values."""
        place = np.searchsorted(self.minutes, times // MINUTE, side="left")
        return self.counts[place], self.sums[place]


class Running:
    """Works out one statistic for every row of a log.

    Args:
        records: Where to write the level of each element of each row.
    """

    def __init__(self, feature: StatisticFeature, prior: Prior | None, records: ByRow) -> None:
        self._feature = feature
        self._prior = prior
        self._rows = records

    def add(self, rows: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        feature, added = self._feature, rows[self._feature.name]
        counted = added.is_not_null().to_numpy()[line.order]
        counts, sums = running(counted), running(added.fill_null(0).to_numpy()[line.order])
        window, delay = feature.config.microseconds, feature.config.delay
        low, high = line.first if window is None else line.since(window + delay), line.until(delay)
        count, total = counts[high] - counts[low], sums[high] - sums[low]
        if earlier is not None:
            before = feature.totals(earlier, rows["key"].to_numpy()[line.order], line.times - delay)
            count, total = count + before[0], total + before[1]
        levels = feature.level(count, total, feature.prior(self._prior, line.times - delay))
        self._rows.add(rows["row"].to_numpy(), level=line.in_log_order(levels.astype(np.float32)))
        return feature.events(rows)


def _by_place(place: Int64s, levels: npt.NDArray[np.float32], rows: int) -> tuple[Floats, Floats]:
    """Sum of the levels at each place, and how many there are."""
    totals = np.bincount(place, weights=levels, minlength=rows)
    return totals.astype(np.float64), np.bincount(place, minlength=rows).astype(np.float64)
