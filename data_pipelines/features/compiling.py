"""Features compiled into Polars expressions over columns of known types."""

from dataclasses import dataclass, field
from functools import reduce

import polars as pl

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.errors import UserError
from data_pipelines.features.config import (
    BagFeature,
    CrossFeature,
    DataConfig,
    HashFeature,
    HistoryFeature,
    IdFeature,
    NumberFeature,
    StatisticFeature,
    Task,
    TimeFeature,
    VectorFeature,
)
from data_pipelines.features.values import MICROSECONDS, epoch, label_value, number, text, texts
from data_pipelines.features.vocabulary import Table, Vocabulary
from data_pipelines.hashing import stable_hash
from data_pipelines.names import SEPARATOR

AGE_BUCKETS = 33
"""log2 of an event's age in seconds: bucket 0 is under a second, the last 136 years and more."""

_LARGEST = 3.4028234663852886e38
"""The largest finite number in 32 bits: what is beyond would be infinite, and a training's loss with it."""

_SINGLE = "single values (kind bag reads lists)"

TIME_SLOTS = {"hour": 24, "weekday": 7, "day": 31, "month": 12}


@dataclass(frozen=True)
class Fitted:
    """What the training split decided.

    Attributes:
        tables: The id space of each table.
        numbers: Mean and deviation of standardised numbers, edges of bucketed ones; in the terms of their feature.
    """

    tables: dict[str, Table]
    numbers: dict[str, list[float]]


@dataclass
class Specs:
    """The encoded features a configuration gives, in its order."""

    sparse: list[SparseSpec] = field(default_factory=list)
    dense: list[DenseSpec] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    """Sizes of the tables that need no vocabulary."""


def specs(config: DataConfig) -> Specs:
    """Names, tables and widths of what ``config`` encodes."""
    found = Specs()
    for name, feature in config.inputs.items():
        match feature:
            case IdFeature():
                found.sparse.append(SparseSpec(name=name, table=feature.table, kind="id"))
            case BagFeature():
                found.sparse.append(
                    SparseSpec(
                        name=name,
                        table=feature.table,
                        kind="bag",
                        weighted=feature.weights is not None,
                        max_length=feature.max_length,
                    )
                )
            case CrossFeature():
                bag = any(isinstance(config.features[part], BagFeature) for part in feature.of)
                found.sparse.append(SparseSpec(name=name, table=feature.table, kind="bag" if bag else "id"))
            case HashFeature():
                found.sparse.append(
                    SparseSpec(name=name, table=feature.table, kind="id" if feature.hashes == 1 else "bag")
                )
                found.slots[feature.table] = feature.rows
            case HistoryFeature():
                for part in feature.of:
                    table = config.features[part].table  # type: ignore[union-attr]
                    found.sparse.append(_event(f"{name}.{part}", table, name, feature.last))
                if feature.age:
                    found.sparse.append(_event(f"{name}.age", f"{name}.age", name, feature.last))
                    found.slots[f"{name}.age"] = AGE_BUCKETS
            case NumberFeature(transform="buckets"):
                found.sparse.append(SparseSpec(name=name, table=name, kind="id"))
                found.slots[name] = feature.buckets
            case NumberFeature():
                found.dense.append(DenseSpec(name=name, width=2 if feature.indicator else 1))
            case StatisticFeature():
                found.dense.append(DenseSpec(name=name, width=1))
            case VectorFeature():
                found.dense.append(DenseSpec(name=name, width=feature.width))
            case TimeFeature():
                for part in feature.parts:
                    if part in TIME_SLOTS:
                        full = f"{name}.{part}"
                        found.sparse.append(SparseSpec(name=full, table=full, kind="id"))
                        found.slots[full] = TIME_SLOTS[part]
                    else:
                        found.dense.append(DenseSpec(name=f"{name}.{part}", width=4 if part == "cyclic" else 1))
    return found


def _event(name: str, table: str, sequence: str, last: int) -> SparseSpec:
    return SparseSpec(name=name, table=table, kind="history", max_length=last, sequence=sequence)


class Raw:
    """Columns of rows with the given schema, in canonical form."""

    def __init__(self, schema: pl.Schema) -> None:
        self.schema = schema

    def column(self, feature: str, column: str) -> tuple[pl.Expr, pl.DataType]:
        """The column and its type.

        Raises:
            UserError: It is not there.
        """
        if column not in self.schema:
            there = ", ".join(name for name in self.schema.names() if not name.startswith("__"))
            raise UserError(f"{feature} reads the column {column!r}, which is not there; there are {there}.")
        return pl.col(column), self.schema[column]

    def number(self, feature: str, column: str) -> pl.Expr:
        expression, dtype = self.column(feature, column)
        try:
            return number(expression, dtype)
        except TypeError:
            raise _wrong_type(feature, column, dtype, "numbers") from None

    def epoch(self, feature: str, column: str) -> pl.Expr:
        expression, dtype = self.column(feature, column)
        try:
            return epoch(expression, dtype)
        except TypeError:
            raise _wrong_type(feature, column, dtype, "times") from None

    def text(self, feature: str, column: str) -> pl.Expr:
        expression, dtype = self.column(feature, column)
        try:
            return text(expression, dtype)
        except TypeError:
            raise _wrong_type(feature, column, dtype, _SINGLE) from None

    def label(self, name: str, task: Task) -> pl.Expr:
        expression, dtype = self.column(f"task {name!r}", task.column)
        try:
            return label_value(expression, dtype, at_least=task.at_least, positive=task.positive)
        except TypeError:
            wanted = _SINGLE if task.positive else "numbers"
            raise _wrong_type(f"task {name!r}", task.column, dtype, wanted) from None


class Values(Raw):
    """The raw values of features, in canonical form, of rows with the given columns."""

    def __init__(self, config: DataConfig, schema: pl.Schema) -> None:
        super().__init__(schema)
        self.config = config

    def texts(self, name: str, feature: BagFeature) -> pl.Expr:
        """Its values row by row, as List(String), cut to ``max_length``."""
        expression, dtype = self.column(f"feature {name!r}", feature.column)
        try:
            lists = texts(expression, dtype, feature.delimiter)
        except TypeError:
            raise _wrong_type(f"feature {name!r}", feature.column, dtype, "lists, or text to cut into one") from None
        return lists if feature.max_length is None else lists.list.head(feature.max_length)

    def weights(self, name: str, feature: BagFeature) -> pl.Expr:
        """The weights of a bag, as List(Float32), cut to ``max_length``."""
        assert feature.weights is not None
        expression, dtype = self.column(f"feature {name!r}", feature.weights)
        if isinstance(dtype, pl.List):
            lists = expression
        elif dtype == pl.String:
            lists = texts(expression, dtype, feature.delimiter)
        else:
            raise _wrong_type(f"feature {name!r}", feature.weights, dtype, "lists of weights")
        lists = lists.cast(pl.List(pl.Float32), strict=False)
        if feature.max_length is not None:
            lists = lists.list.head(feature.max_length)
        return lists.fill_null(pl.lit([], dtype=pl.List(pl.Float32)))

    def of(self, name: str) -> pl.Expr:
        """Text of an id feature (or a cross of such), List(String) of a bag (or a cross with one)."""
        feature = self.config.features[name]
        match feature:
            case IdFeature():
                return self.text(f"feature {name!r}", feature.column)
            case BagFeature():
                return self.texts(name, feature)
            case CrossFeature():
                return self._cross(feature)
        raise AssertionError(f"{name} has no values of its own")

    def _cross(self, feature: CrossFeature) -> pl.Expr:
        bags = [part for part in feature.of if isinstance(self.config.features[part], BagFeature)]
        single = pl.concat_str([self.of(part) for part in feature.of if part not in bags], separator=SEPARATOR)
        if not bags:
            return single
        # The row's own value leads its bag, so that the elements can be combined with it inside the list.
        led = pl.concat_list(pl.concat_list(single), self.of(bags[0]))
        return led.list.eval(pl.concat_str(pl.element().first(), pl.element().slice(1), separator=SEPARATOR))


class Compiled(Values):
    """Expressions that encode rows with the given columns."""

    def __init__(self, config: DataConfig, fitted: Fitted, schema: pl.Schema) -> None:
        super().__init__(config, schema)
        self.fitted = fitted

    def sparse(self, spec: SparseSpec) -> list[pl.Expr]:
        """The ids of a sparse feature, and its weights if it has any."""
        name, _, part = spec.name.partition(".")
        feature = self.config.features[name]
        table = self.fitted.tables[spec.table]
        match feature:
            case IdFeature() | CrossFeature() | BagFeature():
                assert isinstance(table, Vocabulary)
                values = self.of(name)
                if spec.kind == "id":
                    return [table.ids(values).alias(name)]
                encoded = [values.list.eval(table.ids(pl.element())).alias(name)]
                if isinstance(feature, BagFeature) and feature.weights is not None:
                    encoded.append(self.weights(name, feature).alias(f"{name}:weights"))
                return encoded
            case HashFeature():
                value = self.text(f"feature {name!r}", feature.column)
                slots = [stable_hash(value, seed) % feature.rows for seed in range(feature.hashes)]
                ids = [table.slot_ids(slot) for slot in slots]
                return [(ids[0] if feature.hashes == 1 else pl.concat_list(ids)).alias(name)]
            case HistoryFeature():
                return [self._past(spec, part, table)]
            case NumberFeature():
                value = _clipped(feature, self.number(f"feature {name!r}", feature.column))
                bucket = reduce(
                    lambda total, edge: total + (value >= edge).cast(pl.Int32),
                    self.fitted.numbers[name],
                    pl.lit(0, dtype=pl.Int32),
                )
                return [table.slot_ids(pl.when(value.is_not_null()).then(bucket)).alias(name)]
            case TimeFeature():
                return [table.slot_ids(self._time_part(name, feature, part)).alias(spec.name)]
        raise AssertionError(f"{spec.name} is not sparse")

    def _past(self, spec: SparseSpec, part: str, table: Table) -> pl.Expr:
        expression, dtype = self.column(f"history {spec.sequence!r} (which State.attach adds)", spec.name)
        empty = pl.lit([], dtype=pl.List(pl.Int32))
        if dtype in (pl.Null, pl.List(pl.Null)):
            return empty.alias(spec.name)
        if not isinstance(dtype, pl.List):
            raise _wrong_type(f"history {spec.sequence!r}", spec.name, dtype, "lists")
        last = expression.list.tail(spec.max_length or 0)
        assert isinstance(dtype.inner, pl.DataType)
        if part == "age" and not isinstance(table, Vocabulary):
            if not dtype.inner.is_numeric():
                raise _wrong_type(f"history {spec.sequence!r}", spec.name, dtype, "lists of slots")
            # Rows that carry their own history may carry any number.
            slot = pl.element().cast(pl.Int64, strict=False).clip(0, AGE_BUCKETS - 1)
            ids = last.list.eval(table.slot_ids(slot))
        else:
            assert isinstance(table, Vocabulary)
            ids = last.list.eval(table.ids(text(pl.element(), dtype.inner)))
        return ids.fill_null(empty).alias(spec.name)

    def dense(self, spec: DenseSpec) -> pl.Expr:
        """The numbers of a dense feature: Float32, or Array(Float32) when there are several."""
        name, _, part = spec.name.partition(".")
        feature = self.config.features[name]
        match feature:
            case NumberFeature():
                return self._number(name, feature).alias(name)
            case StatisticFeature():
                return self.number(f"statistic {name!r} (which State.attach adds)", name).cast(pl.Float32).alias(name)
            case VectorFeature():
                return self._vector(name, feature).alias(name)
            case TimeFeature() if part == "age":
                age = self._age_days(name, feature).clip(lower_bound=0)
                return age.log1p().fill_null(0).cast(pl.Float32).alias(spec.name)
            case TimeFeature():
                return self._cyclic(name, feature).alias(spec.name)
        raise AssertionError(f"{spec.name} is not dense")

    def _number(self, name: str, feature: NumberFeature) -> pl.Expr:
        value = _clipped(feature, self.number(f"feature {name!r}", feature.column))
        missing = value.is_null()
        if feature.transform == "log1p":
            value = value.sign() * value.abs().log1p()
        elif feature.transform == "standardize":
            mean, deviation = self.fitted.numbers[name]
            value = (value - mean) / deviation
        value = value.clip(-_LARGEST, _LARGEST).cast(pl.Float32).fill_null(0)
        return pl.concat_arr(value, missing.cast(pl.Float32)) if feature.indicator else value

    def _vector(self, name: str, feature: VectorFeature) -> pl.Expr:
        expression, dtype = self.column(f"feature {name!r}", feature.column)
        if not isinstance(dtype, pl.List | pl.Array):
            raise _wrong_type(f"feature {name!r}", feature.column, dtype, "lists of numbers")
        zeros = pl.lit([0.0] * feature.width, dtype=pl.Array(pl.Float32, feature.width))
        return expression.cast(pl.Array(pl.Float32, feature.width)).fill_null(zeros)

    def _time_part(self, name: str, feature: TimeFeature, part: str) -> pl.Expr:
        when = self.epoch(f"feature {name!r}", feature.column).cast(pl.Datetime("us")).dt
        match part:
            case "hour":
                return when.hour()
            case "weekday":
                return when.weekday() - 1
            case "day":
                return when.day() - 1
            case _:
                return when.month() - 1

    def _age_days(self, name: str, feature: TimeFeature) -> pl.Expr:
        assert self.config.time is not None
        now = self.epoch("`time`", self.config.time)
        return (now - self.epoch(f"feature {name!r}", feature.column)) / (86400 * MICROSECONDS)

    def _cyclic(self, name: str, feature: TimeFeature) -> pl.Expr:
        days = self.epoch(f"feature {name!r}", feature.column) / (86400 * MICROSECONDS)
        turns = (days * 6.283185307179586, (days + 3) / 7 * 6.283185307179586)  # 1970 began on a Thursday
        waves = [wave.fill_null(0).cast(pl.Float32) for turn in turns for wave in (turn.sin(), turn.cos())]
        return pl.concat_arr(*waves)


def _clipped(feature: NumberFeature, value: pl.Expr) -> pl.Expr:
    return value if feature.clip is None else value.clip(*feature.clip)


def _wrong_type(reader: str, column: str, dtype: pl.DataType, wanted: str) -> UserError:
    return UserError(f"{reader} reads the column {column!r}, which is {dtype}, where it needs {wanted}.")
