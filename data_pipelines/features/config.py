"""The ``data:`` block of an experiment: where the log is, what to predict, and what its columns mean.

Nothing here reads data. Other code uses :class:`data_pipelines.features.plan.Plan`.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

import data_pipelines.features.kinds  # noqa: F401  (registers the kinds of features)
from data_pipelines.config.base import Config
from data_pipelines.config.chains import chain_problems
from data_pipelines.config.learning import RowWeight, Sampling, Split, Task
from data_pipelines.features.kinds.base import FeatureConfig
from data_pipelines.features.times import TimeFormat, check_format
from data_pipelines.files.formats import Format
from data_pipelines.files.side_tables import Join
from data_pipelines.locations import Location

AnyFeature = Annotated[SerializeAsAny[FeatureConfig], PlainValidator(FeatureConfig.parse)]


class DataConfig(Config):
    """Where the log is, what to predict, how to split, and what each feature means."""

    log: Location = Field(description="Path of a file or folder, a glob, or an object-store address.")
    format: Format | None = Field(default=None, description="Format of the log; by default, that of its suffix.")
    joins: list[Join] = Field(default=[], description="Side tables whose columns are added to each row.")
    where: str | None = Field(
        default=None,
        description="A SQL condition on columns of the log and of its side tables, such as `quantity > 0`. Rows of a "
        "log for which it does not hold are left out as if they were not there. Rows to score need not meet it.",
    )
    time: str | None = Field(default=None, description="The column that holds the time of a row.")
    time_format: TimeFormat | None = Field(
        default=None,
        description="How the times of `time` are written: a pattern of strptime such as `%d.%m.%Y %H:%M`, or `iso`, "
        "`unix_s`, `unix_ms`, `unix_us`, `unix_ns`, `excel`, `YYYYMMDD`, `YYMMDDHH`, `YYYYMMDDHH`, `YYYYMMDDHHMM`, "
        "`YYYYMMDDHHMMSS`. If absent, ISO 8601 and seconds to nanoseconds since 1970 are read.",
    )
    user: str | None = Field(default=None, description="The column that holds the user of a row.")
    group: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The columns that rows shown together share, such as `[session_id, timestamp]`: a list. Lists are "
        "never divided between splits. A row with a null in one of them is in no list.",
    )
    tasks: dict[str, Task] = Field(min_length=1, description="What to predict, by name.")
    weight: RowWeight | None = Field(
        default=None, description="How much each row counts, in losses and metrics: a column, or see below."
    )
    split: Split = Field(
        default=Split(by="random"), description="Training, validation and test rows; by time where `time` is set."
    )
    keys: list[str] = Field(default=[], description="Columns to carry along to predictions and scores.")
    sampling: Sampling | None = Field(default=None, description="Negatives to draw, for logs that hold only positives.")
    features: dict[str, AnyFeature] = Field(min_length=1, description="What columns mean, by the name of the feature.")
    groups: dict[str, list[str]] = Field(
        default={}, description="Groups of features that ablations remove together, by name."
    )
    event_key: list[str] = Field(
        default=[],
        description="Columns that together identify an event, such as `[order_id, line]`: a row that repeats one was "
        "delivered twice and counts once.",
    )
    event_window: float = Field(
        default=2_592_000.0,
        ge=0,
        description="Seconds before the latest event for which a state remembers the keys of events.",
    )
    max_quarantined: float = Field(
        default=0.01, ge=0, le=1, description="The log is refused as a whole if a larger share of its rows is refused."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """Fill in what follows from other keys: the split, the item of negatives, and each feature's own defaults."""
        if not isinstance(values, dict) or not isinstance(values.get("features"), dict):
            return values
        values = dict(values)
        if "split" not in values and values.get("time") is not None:
            values["split"] = {"by": "time"}
        if isinstance(values.get("sampling"), dict) and "keep_negatives" not in values["sampling"]:
            others = [key for key in values.get("keys") or [] if key != values.get("user")]
            values["sampling"] = {**({"item": others[0]} if len(others) == 1 else {}), **values["sampling"]}
        values["features"] = {
            name: _with_defaults(name, feature, values) for name, feature in values["features"].items()
        }
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    @property
    def inputs(self) -> dict[str, FeatureConfig]:
        """The features that a ranker may read: all but those that only histories read."""
        return {name: feature for name, feature in self.features.items() if feature.is_input}

    def as_served(self) -> "DataConfig":
        """The block of an artifact, in which features that are fixed when serving have their fixed value."""
        return self.model_copy(update={"features": {name: f.as_served() for name, f in self.features.items()}})

    @property
    def drawing(self) -> Sampling | None:
        """How negatives are drawn; ``None`` if none are drawn."""
        return self.sampling if self.sampling is not None and self.sampling.draws else None

    def _problems(self) -> Iterator[str]:
        if self.split.by == "time" and self.time is None:
            yield "split by time needs the key `time`: the column that holds it"
        if self.group is not None and self.split.by == "leave_last":
            yield "split by leave_last counts rows of each user and would divide the lists of `group`: split by time"
        if self.group is not None and self.drawing is not None:
            yield "`group` says which rows were shown together, and `sampling` draws rows that never were: remove one"
        if self.split.by == "leave_last" and (self.user is None or self.time is None):
            yield "split by leave_last needs the keys `user` and `time`"
        if self.drawing is not None and self.user is None:
            yield "`sampling` needs the key `user`: negatives are what a user has not chosen"
        for key in ("window", "repeats"):
            if self.sampling is not None and getattr(self.sampling, key) and self.time is None:
                yield f"`sampling.{key}` needs the key `time`: the column that says when a row was"
        yield from chain_problems(self.tasks)
        for name, task in self.tasks.items():
            if task.label_window and self.time is None:
                yield f"`tasks.{name}.label_window` needs the key `time`: the column that says when a row was"
        if self.drawing is not None and any(task.after is not None for task in self.tasks.values()):
            yield "`after` is about rows that were shown, and `sampling` draws rows that never were: remove one"
        if self.event_key and self.time is None:
            yield "`event_key` needs the key `time`: keys of events are remembered for a while after them"
        for join in self.joins:
            if join.time is not None and self.time is None:
                yield f"the as-of join with {join.table} needs the key `time`"
            if join.time_format is not None:
                check_format(join.time_format)
        read_later = {part for feature in self.features.values() for part in feature.past_parts}
        for name, feature in self.features.items():
            if not re.fullmatch(r"[^.:]+", name):
                yield f"feature `{name}`: a name has no `.` and no `:`"
            if not feature.is_input and name not in read_later:
                yield f"feature `{name}` is not an input, and no history's `of` names it: remove it, or read it there"
            yield from feature.problems(name, self)
        yield from self._shared_tables()
        for group, members in self.groups.items():
            for member in members:
                if member.split(".")[0] not in self.features:
                    yield f"group `{group}` names the feature `{member}`, which is not there"

    def _shared_tables(self) -> Iterator[str]:
        seen: dict[str, tuple[str, object]] = {}
        for name, feature in self.features.items():
            if feature.table_rule is not None:
                table, rule = feature.table_rule
                other, expected = seen.setdefault(table, (name, rule))
                if expected != rule:
                    yield f"features `{other}` and `{name}` share the table `{table}` and must agree on its size keys"


def _with_defaults(name: str, feature: Any, data: dict[str, Any]) -> Any:
    if not isinstance(feature, dict):
        return feature
    kind = feature.get("kind")
    config = FeatureConfig.kinds().get(kind) if isinstance(kind, str) else None
    return feature if config is None else {**config.defaults(name, data), **feature}
