"""The kind ``time``: parts of a time, as ids or numbers."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import available_timezones

import polars as pl
from pydantic import Field, field_validator

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.features.kinds.base import Check, Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns, unreadable
from data_pipelines.features.times import TimeFormat
from data_pipelines.features.values import MICROSECONDS

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

_SLOTS = {"hour": 24, "weekday": 7, "day": 31, "month": 12}
_DAY = 86400 * MICROSECONDS
_TURN = 6.283185307179586


@register
class TimeConfig(FeatureConfig):
    """Parts of a time, in UTC or in the time zone ``zone``."""

    kind: Literal["time"] = "time"
    column: str = Field(description="The column to read; by default `data.time`.")
    time_format: TimeFormat | None = Field(
        default=None,
        description="How its times are written, as in `data.time_format`, which holds for the column `data.time`.",
    )
    zone: str | None = Field(
        default=None,
        description="The time zone of hours, days and months, such as `Europe/Berlin`; UTC if absent. Times without an "
        "offset are taken as UTC, so leave it out if they are local.",
    )
    parts: list[Literal["hour", "weekday", "day", "month", "cyclic", "age"]] = Field(
        default=["hour", "weekday"],
        min_length=1,
        description="Ids: `hour`, `weekday`, `day` (of the month), `month`. Numbers: `cyclic` (sine and cosine of the "
        "hour of the day and of the hour of the week), `age` (log1p of the days from `column` to the row's own time).",
    )

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return {} if data.get("time") is None else {"column": data["time"]}

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None and zone not in available_timezones():
            raise ValueError(f"{zone!r} is not a time zone: write a name such as Europe/Berlin")
        return zone

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        if "age" in self.parts and self.column == data.time:
            yield f"feature `{name}`: the age of the row's own time is always 0; name another `column`"
        if self.column == data.time and self.time_format not in (None, data.time_format):
            yield f"feature `{name}`: its column is `data.time`, so `data.time_format` says how it is written"

    def build(self, name: str, data: "DataConfig") -> "TimeFeature":
        return TimeFeature(name, self, data.time, data.time_format)


class TimeFeature(Feature[TimeConfig]):
    """Parts of a time, each an encoded feature ``<name>.<part>``.

    Attributes:
        now: The column that holds the row's own time, which ages are counted to.
        now_format: How the times of that column are written.
        format: How the times that it reads are written.
    """

    def __init__(self, name: str, config: TimeConfig, now: str | None, now_format: str | None) -> None:
        super().__init__(name, config)
        self.now = now
        self.now_format = now_format
        self.format = now_format if config.column == now else config.time_format

    def columns(self) -> frozenset[str]:
        return frozenset({self.config.column})

    def times(self) -> dict[str, tuple[str, str | None]]:
        return {self.config.column: (f"data.features.{self.name}.time_format", self.format)}

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        if self.config.column != self.now:
            [(column, (key, format))] = self.times().items()
            yield unreadable(column, key, format), raw.unreadable_time(self.reader, column, format)

    def specs(self) -> Specs:
        specs = Specs()
        for part in self.config.parts:
            name = f"{self.name}.{part}"
            if part in _SLOTS:
                specs.sparse.append(SparseSpec(name=name, table=name, kind="id"))
                specs.slots[name] = _SLOTS[part]
            else:
                specs.dense.append(DenseSpec(name=name, width=4 if part == "cyclic" else 1))
        return specs

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        part = spec.name.removeprefix(f"{self.name}.")
        time = raw.epoch(self.reader, self.config.column, self.format)
        if isinstance(spec, SparseSpec):
            value = fitted.tables[spec.table].slot_ids(_slot(part, self._local(time)))
        elif part == "age":
            assert self.now is not None
            days = (raw.epoch("`time`", self.now, self.now_format) - time) / _DAY
            value = days.clip(lower_bound=0).log1p().fill_null(0).cast(pl.Float32)
        else:
            value = _cyclic(self._local(time).dt.epoch("us"))
        return [value.alias(spec.name)]

    def _local(self, time: pl.Expr) -> pl.Expr:
        """What a clock in the time zone shows."""
        utc = time.cast(pl.Datetime("us"))
        if self.config.zone is None:
            return utc
        return utc.dt.replace_time_zone("UTC").dt.convert_time_zone(self.config.zone).dt.replace_time_zone(None)


def _slot(part: str, local: pl.Expr) -> pl.Expr:
    """The part as a whole number from 0."""
    when = local.dt
    match part:
        case "hour":
            return when.hour()
        case "weekday":
            return when.weekday() - 1
        case "day":
            return when.day() - 1
        case _:
            return when.month() - 1


def _cyclic(time: pl.Expr) -> pl.Expr:
    """Sine and cosine of the time of the day, then of the time of the week."""
    days = time / _DAY
    turns = (days * _TURN, (days + 3) / 7 * _TURN)  # 1970 began on a Thursday
    return pl.concat_arr(*(wave.fill_null(0).cast(pl.Float32) for turn in turns for wave in (turn.sin(), turn.cos())))
