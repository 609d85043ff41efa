"""The kind ``recency``: how recent the last earlier event of a key is, such as of a user with this very item.

Letters: N rows, K rows that have a key.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from data_pipelines.config.base import register
from data_pipelines.disk.by_row import ByRow, Fields, places
from data_pipelines.features.kinds.past import Kept, PastConfig, PastNumber, is_event, label_delay
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import MICROSECONDS
from data_pipelines.features.vocabulary import Table
from data_pipelines.timelines import Int64s, Keys, Timeline, find

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

_YEAR = 365 * 86400 * MICROSECONDS
_NEVER = -(1 << 62)

Float32s = npt.NDArray[np.float32]


@register
class RecencyConfig(PastConfig):
    """log1p of a year divided by the time since the last strictly earlier row that shares the ``by`` columns.

    0 where there is no such row, 0.7 after a year, 2.6 after a month, 5.9 after a day.
    """

    kind: Literal["recency"] = "recency"
    by: list[str] = Field(
        min_length=1,
        description="Columns. One of them may be that of a bag feature: then the most recent of its elements counts.",
    )
    where: str | None = Field(default=None, description="A SQL condition: which rows are events; all where absent.")

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        yield from super().problems(name, data)
        if self.where is not None and label_delay(name, data.model_dump()):
            yield f"feature `{name}`: a recency does not wait for labels that come late: use a history, which does"

    def build(self, name: str, data: "DataConfig") -> "RecencyFeature":
        return RecencyFeature(name, self)


class RecencyFeature(PastNumber[RecencyConfig]):
    """One number per row."""

    def __init__(self, name: str, config: RecencyConfig) -> None:
        super().__init__(name, config)
        self.reader = f"recency {name!r}"

    @property
    def by(self) -> tuple[str, ...]:
        return tuple(self.config.by)

    def conditions(self) -> Sequence[str]:
        return () if self.config.where is None else (self.config.where,)

    def past_columns(self, raw: RawColumns) -> list[pl.Expr]:
        """Whether a row is an event."""
        return [is_event(self.reader, self.config.where, raw).alias(self.name)]

    @property
    def fields(self) -> Fields:
        return (("recency", "<f4"),)

    def begin(
        self, tables: Mapping[str, Table], events: Path, records: ByRow, minutes: pl.DataFrame | None
    ) -> "RecencyWorker":
        return RecencyWorker(self, records)

    def gather(
        self, records: np.ndarray, rows: np.ndarray, times: np.ndarray, minutes: pl.DataFrame | None
    ) -> list[pl.Series]:
        values = _most_recent(places(rows, records["row"]), records["recency"], len(rows))
        return [pl.Series(self.name, values)]

    def events(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(pl.col(self.name)).select("key", "time")

    def condense(self, past: pl.DataFrame, latest: int) -> pl.DataFrame:
        """The latest time of each key, and the latest before it: a row at the latest time must not see it."""
        last_two = pl.col("time").unique().top_k(2)
        return (
            past.group_by("key")
            .agg(last_two.max(), previous=pl.when(last_two.len() > 1).then(last_two.min()).otherwise(_NEVER))
            .sort("key")
        )

    @property
    def kept_columns(self) -> Mapping[str, pl.DataType]:
        return {"previous": pl.Int64()}

    def merge(self, old: pl.DataFrame, new: pl.DataFrame, latest: int) -> pl.DataFrame:
        both = pl.concat([old, new])
        times = [both.select("key", time) for time in ("time", pl.col("previous").alias("time"))]
        return self.condense(pl.concat(times).filter(pl.col("time") > _NEVER), latest)

    def attach(self, kept: Kept, keys: Keys, places: Int64s, times: Int64s) -> list[pl.Series]:
        recent = recency(self.last(kept.rows, keys, times[places]), times[places])
        return [pl.Series(self.name, _most_recent(places, recent, len(times)))]

    def last(self, kept: pl.DataFrame, keys: Keys, now: Int64s) -> Int64s:
        """(K,) the time of the last event of each key strictly before ``now``, from what a state keeps."""
        if kept.is_empty():
            return np.full(len(keys), _NEVER)
        place, known = find(kept["key"].to_numpy(), keys)
        latest, previous = kept["time"].to_numpy()[place], kept["previous"].to_numpy()[place]
        return np.select([known & (latest < now), known & (previous < now)], [latest, previous], _NEVER)


class RecencyWorker:
    """Computes one recency feature for every row of a log.

    Args:
        feature: The feature to compute.
        records: Receives the recency of each row, or of each element of its bag.
    """

    def __init__(self, feature: RecencyFeature, records: ByRow) -> None:
        self._feature = feature
        self._rows = records

    def add(self, rows: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        event = rows[self._feature.name].to_numpy()[line.order]
        until = np.maximum.accumulate(np.where(event, np.arange(len(event)), -1))
        place = until[line.tie - 1]  # wraps around where nothing is earlier, which the next line leaves out
        found = (line.tie > line.first) & (place >= line.first)
        last = np.where(found, line.times[place], _NEVER)
        if earlier is not None:
            last = np.maximum(last, self._feature.last(earlier, rows["key"].to_numpy()[line.order], line.times))
        self._rows.add(rows["row"].to_numpy(), recency=line.in_log_order(recency(last, line.times)))
        return self._feature.events(rows)


def recency(last: Int64s, now: Int64s) -> Float32s:
    """The feature, from the time of the last event (microseconds)."""
    age = np.where(last > _NEVER, now - last, 1)
    values: Float32s = np.where(last > _NEVER, np.log1p(_YEAR / age), 0.0).astype(np.float32)
    return values


def _most_recent(place: Int64s, values: Float32s, rows: int) -> Float32s:
    """(N,) the greatest value at each place; 0 where there is none."""
    greatest = np.zeros(rows, np.float32)
    np.maximum.at(greatest, place, values)
    return greatest
