"""What a log's columns mean: the ``data:`` block of an experiment, one pydantic model a kind of feature.

Nothing here touches data. :mod:`data_pipelines.features.encoder` compiles these models into Polars expressions.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from data_pipelines.disk.file_names import checked_name
from data_pipelines.redaction import redact


class Config(BaseModel):
    """Base of every block of a configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Location = Annotated[str, PlainSerializer(redact, when_used="json")]
"""A path or address. It may hold ``${NAME}``, which :func:`data_pipelines.locations.expand` replaces where the place is
read and nowhere earlier, so that what is saved keeps the name; a credential written out is saved as ``***``."""


# ---------------------------------------------------------------------------------------------------- where rows are


class ParquetFormat(Config):
    kind: Literal["parquet"] = "parquet"
    hive: bool = False


class CsvFormat(Config):
    """Delimited text, compressed or not. ``columns`` names the columns where there is no header."""

    kind: Literal["csv"] = "csv"
    delimiter: str = ","
    header: bool = True
    columns: list[str] | None = None
    quote: str | None = '"'


class NdjsonFormat(Config):
    kind: Literal["ndjson"] = "ndjson"


class IpcFormat(Config):
    kind: Literal["ipc"] = "ipc"


class DeltaFormat(Config):
    kind: Literal["delta"] = "delta"
    version: int | None = None


class LibsvmFormat(Config):
    """Lines ``label index:value ...`` (libsvm) or ``label field:index:value ...`` (libffm).

    They become the columns ``label``, ``features`` (list of text: ``index``, or ``field:index``) and ``values``.
    """

    kind: Literal["libsvm"] = "libsvm"


Format = Annotated[
    ParquetFormat | CsvFormat | NdjsonFormat | IpcFormat | DeltaFormat | LibsvmFormat, Field(discriminator="kind")
]


class Join(Config):
    """A side table, joined by key; as of each row's time where the table has a ``time`` of its own."""

    table: Location
    on: str | list[str]
    time: str | None = None
    format: Format | None = None

    @property
    def keys(self) -> list[str]:
        return [self.on] if isinstance(self.on, str) else self.on


# ------------------------------------------------------------------------------------------------------ what to learn


class Task(Config):
    """A label. Binary ones are 0/1, or made so by ``at_least``, or by ``positive``; a null means that the row has none.

    ``positive`` lists the values that count as positive, as text (``[yes]``, or ``[cart, purchase]`` of a column of
    events; quote words that YAML takes for truth values). ``where`` (a SQL condition) restricts the task to the rows
    it holds for.
    """

    column: str
    kind: Literal["binary", "regression", "count"] = "binary"
    at_least: float | None = None
    positive: tuple[str, ...] = ()
    weight: float = Field(default=1.0, ge=0)
    where: str | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> "Task":
        if self.positive and (self.kind != "binary" or self.at_least is not None):
            raise ValueError("positive makes a binary label, and needs no at_least")
        return self


class Split(Config):
    """How rows are divided into train, valid and test.

    ``time``: the latest rows are test, those before them valid; ``valid`` and ``test`` are shares of the rows (ties in
    time by row order), or dates at which each begins. ``random``: shares. ``leave_last``: the last ``test`` rows of
    each user, the ``valid`` before them. ``column``: a column that holds ``train``, ``valid`` or ``test``.
    ``gap`` (seconds) drops the rows of that long before valid and before test, so that late labels cannot leak.
    """

    by: Literal["time", "random", "leave_last", "column"] = "time"
    valid: float | str = 0.1
    test: float | str = 0.1
    gap: float = Field(default=0.0, ge=0)
    column: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _shares(self) -> "Split":
        if self.by == "column" and self.column is None:
            raise ValueError("split by column needs the key `column`")
        if self.gap and self.by != "time":
            raise ValueError("`gap` has a meaning only in a split by time")
        if self.by == "leave_last":
            if not all(isinstance(n, int | float) and n == int(n) and n >= 0 for n in (self.valid, self.test)):
                raise ValueError("split by leave_last takes whole numbers of rows for `valid` and `test`, such as 1")
        elif self.by == "random" or (self.by == "time" and not isinstance(self.valid, str)):
            if isinstance(self.valid, str) or isinstance(self.test, str):
                raise ValueError("`valid` and `test` must both be shares, or both dates in a split by time")
            if self.valid < 0 or self.test < 0 or self.valid + self.test >= 1:
                raise ValueError("shares `valid` and `test` must be at least 0 and leave a part for training")
        elif self.by == "time" and not isinstance(self.test, str):
            raise ValueError("`valid` and `test` must both be shares, or both dates")
        return self


class Sampling(Config):
    """Negatives for logs that hold positives only, drawn from the candidates of the training split.

    ``item`` is the column they differ in from the row they are drawn for (by default the one key that is not the
    user); what describes an item must be joined from a side table. The log gains the column ``positive``, 1 in its own
    rows and 0 in the negatives: the task to learn.
    """

    item: str
    negatives: int = Field(default=4, ge=1)
    by: Literal["uniform", "popularity"] = "uniform"
    exponent: float = Field(default=0.75, ge=0)
    seed: int = 0


# ----------------------------------------------------------------------------------------------------------- features


class VocabularyConfig(Config):
    """Which values get an id of their own: those seen ``min_count`` times in train, at most the ``max_size`` most
    frequent. Others share ``oov_buckets`` ids by hash."""

    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)
    oov_buckets: int = Field(default=1, ge=1)
    table: str


class IdFeature(VocabularyConfig):
    """One categorical value a row.

    With ``input: false`` only histories read it, of past events: a rating, say, which of the row itself is the label.
    """

    kind: Literal["id"] = "id"
    column: str
    input: bool = True


class BagFeature(VocabularyConfig):
    """Any number of categorical values a row: a list column, text cut at ``delimiter``, or text that looks like a list
    (``[6285, 194]``). ``weights`` names a column of as many weights. The first ``max_length`` values are kept."""

    kind: Literal["bag"] = "bag"
    column: str
    delimiter: str | None = None
    weights: str | None = None
    max_length: int | None = Field(default=None, ge=1)


class NumberFeature(Config):
    """A number. Null and NaN become 0 after the transform (with ``indicator``, a second number says so).

    ``buckets`` turns it into an id: the bucket between quantiles of the training split.
    """

    kind: Literal["number"] = "number"
    column: str
    transform: Literal["none", "log1p", "standardize", "buckets"] = "none"
    clip: tuple[float, float] | None = None
    buckets: int = Field(default=32, ge=2)
    indicator: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "NumberFeature":
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip must be [low, high] with low below high, not {list(self.clip)}")
        if self.indicator and self.transform == "buckets":
            raise ValueError("buckets need no indicator: null has an id of its own")
        return self


class TimeFeature(Config):
    """Parts of a time (UTC): ids (``hour``, ``weekday``, ``day``, ``month``), or numbers: ``cyclic`` (sine and cosine
    of the hour of the day and of the week), ``age`` (log1p of the days from ``column`` to the row's own time)."""

    kind: Literal["time"] = "time"
    column: str
    parts: list[Literal["hour", "weekday", "day", "month", "cyclic", "age"]] = Field(
        default=["hour", "weekday"], min_length=1
    )


class VectorFeature(Config):
    """A list of ``width`` numbers, such as an embedding of a text or an image. Null becomes zeros."""

    kind: Literal["vector"] = "vector"
    column: str
    width: int = Field(ge=1)


class CrossFeature(VocabularyConfig):
    """The combination of two or more id features (one of them may be a bag: then a bag of combinations)."""

    kind: Literal["cross"] = "cross"
    of: list[str] = Field(min_length=2)


class HashFeature(Config):
    """A value hashed into ``rows`` ids without a vocabulary, ``hashes`` times over so that few values share all."""

    kind: Literal["hash"] = "hash"
    column: str
    table: str
    rows: int = Field(ge=1)
    hashes: int = Field(default=1, ge=1)


class HistoryFeature(Config):
    """The last events of an entity that were strictly earlier than the row, oldest first.

    ``of`` names the id or bag features to read from those events (of a bag, its first value), ``where`` (a SQL
    condition) says which rows are events, and ``age`` adds how long ago each was, as an id of log2 buckets.
    """

    kind: Literal["history"] = "history"
    of: list[str] = Field(min_length=1)
    where: str | None = None
    last: int = Field(default=50, ge=1, le=65535)
    entity: str
    age: bool = False


class StatisticFeature(Config):
    """A running statistic of the rows strictly earlier than the row that share its ``by`` columns.

    ``by`` names columns, of which one may be that of a bag feature: then the statistic is the mean over its elements.
    ``of`` names a task, or a column of numbers. ``count`` gives log1p of the count; ``rate`` the log-odds of the rate
    smoothed with ``smoothing`` rows at the running overall rate; ``mean`` the mean, smoothed likewise. ``window``
    (seconds) forgets what is older.
    """

    kind: Literal["statistic"] = "statistic"
    measure: Literal["count", "rate", "mean"]
    of: str | None = None
    by: list[str] = Field(min_length=1)
    smoothing: float = Field(default=20.0, gt=0)
    window: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _needs_of(self) -> "StatisticFeature":
        if self.measure != "count" and self.of is None:
            raise ValueError(f"measure {self.measure} needs the key `of`: a task or a column of numbers")
        return self


Feature = Annotated[
    IdFeature
    | BagFeature
    | NumberFeature
    | TimeFeature
    | VectorFeature
    | CrossFeature
    | HashFeature
    | HistoryFeature
    | StatisticFeature,
    Field(discriminator="kind"),
]

HAS_COLUMN = ("id", "bag", "number", "vector", "hash")
HAS_TABLE = ("id", "bag", "cross", "hash")


class DataConfig(Config):
    """The ``data:`` block: where the log lies, what to predict, how to split, and what each feature means."""

    log: Location
    format: Format | None = None
    joins: list[Join] = []
    time: str | None = None
    user: str | None = None
    tasks: dict[str, Task] = Field(min_length=1)
    split: Split = Split(by="random")
    keys: list[str] = []
    sampling: Sampling | None = None
    features: dict[str, Feature] = Field(min_length=1)
    groups: dict[str, list[str]] = {}
    max_quarantined: float = Field(default=0.01, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """A feature reads the column, and has the table, of its own name; its entity is the user; its time the time."""
        if not isinstance(values, dict) or not isinstance(values.get("features"), dict):
            return values
        values = dict(values)
        if "split" not in values and values.get("time") is not None:
            values["split"] = {"by": "time"}
        if isinstance(values.get("sampling"), dict):
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
    def inputs(self) -> dict[str, Feature]:
        """The features that a ranker may read: all but those that only histories read."""
        return {name: f for name, f in self.features.items() if not isinstance(f, IdFeature) or f.input}

    def _problems(self) -> Iterator[str]:
        if self.split.by == "time" and self.time is None:
            yield "split by time needs the key `time`: the column that holds it"
        if self.split.by == "leave_last" and (self.user is None or self.time is None):
            yield "split by leave_last needs the keys `user` and `time`"
        if self.sampling is not None and self.user is None:
            yield "`sampling` needs the key `user`: negatives are what a user has not chosen"
        for join in self.joins:
            if join.time is not None and self.time is None:
                yield f"the as-of join with {join.table} needs the key `time`"
        for name, feature in self.features.items():
            if not re.fullmatch(r"[^.:]+", name):
                yield f"feature `{name}`: a name has no `.` and no `:`"
            if name not in self.inputs and not any(
                isinstance(other, HistoryFeature) and name in other.of for other in self.features.values()
            ):
                yield f"feature `{name}` is no input, and no history's `of` names it: take it out, or read it there"
            if isinstance(feature, CrossFeature | HistoryFeature):
                yield from self._check_parts(name, feature)
            yield from self._check_files(name, feature)
            if isinstance(feature, HistoryFeature | StatisticFeature) and self.time is None:
                yield f"feature `{name}`: a {feature.kind} needs the key `time`: the column that says what came before"
            if isinstance(feature, TimeFeature) and "age" in feature.parts and feature.column == self.time:
                yield f"feature `{name}`: the age of the row's own time is always 0; name another `column`"
            if isinstance(feature, StatisticFeature) and feature.measure == "rate":
                task = self.tasks.get(feature.of or "")
                if task is None or task.kind != "binary":
                    yield f"feature `{name}`: a rate is of a binary task, and `{feature.of}` is none"
        yield from self._check_tables()
        for group, members in self.groups.items():
            for member in members:
                if member.split(".")[0] not in self.features:
                    yield f"group `{group}` names the feature `{member}`, which is not there"

    def _check_parts(self, name: str, feature: CrossFeature | HistoryFeature) -> Iterator[str]:
        for part in feature.of:
            if not isinstance(self.features.get(part), IdFeature | BagFeature):
                yield f"feature `{name}`: `of` names `{part}`, which is no id or bag feature"
        if isinstance(feature, CrossFeature) and sum(isinstance(self.features[p], BagFeature) for p in feature.of) > 1:
            yield f"feature `{name}`: at most one part of a cross may be a bag"

    def _check_files(self, name: str, feature: Feature) -> Iterator[str]:
        """The past of a history or a statistic lies in files of its name."""
        files: list[str] = []
        if isinstance(feature, HistoryFeature):
            files = [f"{name}.arrow", *(f"{name}.{part}.i32" for part in feature.of)]
        elif isinstance(feature, StatisticFeature):
            files = [f"{name}.arrow"]
        for file in files:
            try:
                plain = "/" not in checked_name(file)
            except ValueError:
                plain = False
            if not plain:
                yield f"feature `{name}`: files are named after it and its parts: use short names without `/` or `\\`"

    def _check_tables(self) -> Iterator[str]:
        seen: dict[str, tuple[str, object]] = {}
        rule: object
        for name, feature in self.features.items():
            if isinstance(feature, VocabularyConfig):
                table, rule = feature.table, (feature.min_count, feature.max_size, feature.oov_buckets)
            elif isinstance(feature, HashFeature):
                table, rule = feature.table, feature.rows
            else:
                continue
            other, expected = seen.setdefault(table, (name, rule))
            if expected != rule:
                yield f"features `{other}` and `{name}` share the table `{table}` and must agree on its size keys"


def _with_defaults(name: str, feature: Any, config: dict[str, Any]) -> Any:
    if not isinstance(feature, dict):
        return feature
    kind, filled = feature.get("kind"), dict(feature)
    if kind in HAS_COLUMN:
        filled.setdefault("column", name)
    if kind in HAS_TABLE:
        filled.setdefault("table", name)
    if kind == "time" and config.get("time") is not None:
        filled.setdefault("column", config["time"])
    if kind == "history" and config.get("user") is not None:
        filled.setdefault("entity", config["user"])
    return filled
