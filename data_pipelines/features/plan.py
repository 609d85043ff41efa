"""The plan of a data set: the config of its features, resolved once into objects that everything else asks."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from data_pipelines.config.learning import RowWeight, Task
from data_pipelines.features.conditions import condition, condition_columns
from data_pipelines.features.config import DataConfig
from data_pipelines.features.kinds.base import Check, Feature, Specs
from data_pipelines.features.kinds.categorical import CategoricalFeature
from data_pipelines.features.kinds.past import PastFeature
from data_pipelines.features.kinds.relative import RelativeFeature
from data_pipelines.features.labels import label, label_checks
from data_pipelines.features.raw_columns import RawColumns, unreadable
from data_pipelines.features.row_weights import negative, row_weight, weight_checks
from data_pipelines.files.side_tables import Join
from data_pipelines.hashing import key_of
from data_pipelines.names import DRAWN, LIST, LOG_Q, POSITIVE, ROW, SPLIT, UNLABELLED


@dataclass(frozen=True)
class Plan:
    """The features, tasks and columns of a ``data:`` block, resolved once.

    Attributes:
        config: The block itself.
        features: The features by name, in the order of the config.
        bags: By column, the feature that reads it as a bag.
    """

    config: DataConfig
    features: Mapping[str, Feature[Any]]
    bags: Mapping[str, CategoricalFeature[Any]]

    @staticmethod
    def of(config: DataConfig) -> "Plan":
        """The plan of all features of ``config``."""
        features = {name: feature.build(name, config) for name, feature in config.features.items()}
        bags: dict[str, CategoricalFeature[Any]] = {}
        for name, feature in features.items():
            column = config.features[name].bag_column
            if isinstance(feature, CategoricalFeature) and column is not None:
                bags.setdefault(column, feature)
        return Plan(config, features, bags)

    def select(self, names: Iterable[str]) -> "Plan":
        """The plan of fewer features, named as in the config, or in the schema (``likes.age``)."""
        chosen = {name.partition(".")[0] for name in names}
        return replace(self, features={name: f for name, f in self.features.items() if name in chosen})

    def feature(self, encoded: str) -> Feature[Any]:
        """The feature that gives an encoded feature, such as ``likes`` for ``likes.age``."""
        return self.features[encoded.partition(".")[0]]

    @property
    def tasks(self) -> dict[str, Task]:
        """What to predict, by name."""
        return self.config.tasks

    @cached_property
    def weights(self) -> dict[str, RowWeight]:
        """How much rows count, by task; without the tasks for which every row counts the same."""
        found = {name: task.row_weight or self.config.weight for name, task in self.tasks.items()}
        return {name: weight for name, weight in found.items() if weight is not None}

    @property
    def label_windows(self) -> dict[str, float]:
        """Seconds for which the labels of tasks may still change; without the tasks whose labels are known at once."""
        return {name: task.label_window for name, task in self.tasks.items() if task.label_window}

    @property
    def weighted_tasks(self) -> list[str]:
        """The tasks for which a data set stores how much each row counts."""
        return [name for name in self.tasks if name in self.weights or self.kept_negatives is not None]

    @property
    def corrected_tasks(self) -> list[str]:
        """The tasks whose logits are corrected by how often an item is drawn as a negative."""
        drawing = self.config.drawing
        corrects = drawing is not None and drawing.corrects
        return [name for name, task in self.tasks.items() if corrects and task.column == POSITIVE]

    @property
    def has_lists(self) -> bool:
        """Whether a data set stores the list of each row: the rows that it is compared with."""
        return self.config.group is not None or self.config.drawing is not None

    def list_key(self, raw: RawColumns) -> pl.Expr:
        """UInt64: the key of the list that each row is in; 0 for a row that is in no list.

        Without ``group`` rows must have been drawn: a list is then a positive and its negatives.

        Raises:
            UserError: A column of ``group`` is missing, or holds no single values.
        """
        if self.config.group is None:
            return pl.col(LIST)
        return key_of([raw.text("`group`", column) for column in self.config.group]).fill_null(0)

    @property
    def kept_negatives(self) -> float | None:
        """The share of negatives that training keeps; ``None`` for all."""
        return None if self.config.sampling is None else self.config.sampling.keep_negatives

    @property
    def where_columns(self) -> list[str]:
        """The columns that decide whether a row of a log is read."""
        where = self.config.where
        return [] if where is None else condition_columns("`data`", where)

    def is_read(self, raw: RawColumns) -> pl.Expr:
        """Whether a row of a log is read, as ``data.where`` says.

        Raises:
            UserError: A column of the condition is missing, or it does not fit their types.
        """
        where = self.config.where
        return pl.lit(True) if where is None else condition("`data`", where, raw.schema).fill_null(False)

    @property
    def time(self) -> str | None:
        """The column that holds the time of a row."""
        return self.config.time

    def when(self, raw: RawColumns) -> pl.Expr:
        """Int64 microseconds since 1970 of each row; null where its time cannot be read.

        Raises:
            UserError: The column of the time is missing, or its type holds no times.
        """
        assert self.time is not None
        return raw.epoch("`time`", self.time, self.config.time_format)

    @property
    def times(self) -> dict[str, tuple[str, str | None]]:
        """The columns that are read as times: for each the key that says its format, and that format."""
        found = {column: pair for feature in self.features.values() for column, pair in feature.times().items()}
        return found if self.time is None else {**found, self.time: ("data.time_format", self.config.time_format)}

    @property
    def keys(self) -> list[str]:
        """The columns that a data set stores unchanged: the keys, the user and the time."""
        config = self.config
        return list(dict.fromkeys(name for name in (*config.keys, config.user, config.time) if name is not None))

    @cached_property
    def categorical(self) -> dict[str, CategoricalFeature[Any]]:
        """The features with a vocabulary."""
        return {name: f for name, f in self.features.items() if isinstance(f, CategoricalFeature)}

    @cached_property
    def relative(self) -> dict[str, RelativeFeature]:
        """The features that depend on the other rows of a list."""
        return {name: f for name, f in self.features.items() if isinstance(f, RelativeFeature)}

    @cached_property
    def past(self) -> dict[str, PastFeature[Any]]:
        """The features that depend on earlier rows."""
        return {name: f for name, f in self.features.items() if isinstance(f, PastFeature)}

    @cached_property
    def past_by_key(self) -> dict[tuple[str, ...], dict[str, PastFeature[Any]]]:
        """The features that depend on earlier rows, by the columns that identify their entity."""
        found: dict[tuple[str, ...], dict[str, PastFeature[Any]]] = {}
        for name, feature in self.past.items():
            found.setdefault(feature.by, {})[name] = feature
        return found

    @cached_property
    def specs(self) -> Specs:
        """The encoded features of all inputs, in the order of the config."""
        found = Specs()
        for name in self.config.inputs:
            if name in self.features:
                own = self.features[name].specs()
                found.sparse += own.sparse
                found.dense += own.dense
                found.slots |= own.slots
        return found

    @cached_property
    def log_columns(self) -> frozenset[str]:
        """Every column that is read of a log, and those the product adds itself."""
        config = self.config
        names = {ROW, POSITIVE, SPLIT, DRAWN, LOG_Q, LIST, config.time, config.user, config.split.column, *config.keys}
        if config.drawing is not None:
            names.update((config.drawing.item, *config.drawing.basket))
        names.update((*(config.group or ()), *config.event_key))
        names.update(key for join in config.joins for key in join.keys)
        names.update(task.column for task in config.tasks.values())
        names.update(weight.read_column for weight in self.weights.values())
        names.update(self.where_columns)
        conditions = [(f"task {name!r}", task.where) for name, task in self.tasks.items() if task.where is not None]
        conditions += [(feature.reader, where) for feature in self.features.values() for where in feature.conditions()]
        for reader, where in conditions:
            names.update(condition_columns(reader, where))
        named = frozenset(name for name in names if name is not None)
        return named.union(*(feature.log_columns() for feature in self.features.values()))

    @cached_property
    def row_columns(self) -> frozenset[str]:
        """Every column that a new row needs to be encoded, and those carried along with its scores."""
        carried = {*self.config.keys, *([self.time] if self.time else [])}
        carried.update((self.config.group or ()) if self.relative else ())
        return frozenset(carried).union(*(feature.columns() for feature in self.features.values()))

    @cached_property
    def optional_columns(self) -> frozenset[str]:
        """Every column that features read of new rows that have it."""
        return frozenset().union(*(feature.optional_columns() for feature in self.features.values()))

    @cached_property
    def row_joins(self) -> list[Join]:
        """The side tables that a new row may need; not those whose ``columns`` only give labels, weights or splits."""
        read, found = self.row_columns | self.optional_columns, list[Join]()
        for join in reversed(self.config.joins):
            if join.columns is None or read.intersection(join.added(()).values()):
                found.insert(0, join)
                read = read.union(join.keys)
        return found

    def label(self, task: str, raw: RawColumns) -> pl.Expr:
        """Float32 labels of a task; null where a row has none, and 0 where the task that it comes after has 0.

        Raises:
            UserError: The task's column is missing or holds no numbers, or its ``where`` is not a SQL condition.
        """
        own = label(task, self.tasks[task], raw)
        first = self.tasks[task].after
        if first is None:
            return own
        return pl.when(own.is_null() & (self.label(first, raw) == 0)).then(pl.lit(0, pl.Float32)).otherwise(own)

    def contradiction_checks(self, raw: RawColumns) -> Iterator[Check]:
        """Rows in which a task happened without the one that it comes after."""
        for name, task in self.tasks.items():
            if task.after is not None:
                reason = f"{task.column}: task {name!r} happened without {task.after!r}, which it comes after"
                yield reason, (self.label(name, raw) == 1) & (self.label(task.after, raw) == 0)

    def weight(self, task: str, raw: RawColumns) -> pl.Expr:
        """Float32: how much each row counts for a task; the negatives that training keeps stand for those it drops.

        Raises:
            UserError: The column of weights is missing or holds no numbers.
        """
        weight = row_weight(self.weights[task], raw) if task in self.weights else pl.lit(1.0)
        if self.kept_negatives is not None:
            thinned = (pl.col(SPLIT) == 0) & self.is_negative(raw)
            weight = pl.when(thinned).then(weight / self.kept_negatives).otherwise(weight)
        return weight.cast(pl.Float32)

    def is_negative(self, raw: RawColumns) -> pl.Expr:
        """Whether no task has a label other than 0."""
        return negative([self.label(name, raw) for name in self.tasks])

    def checks(self, raw: RawColumns, *, labelled: bool) -> Iterator[Check]:
        """Reasons to refuse a row, and where each holds (null counts as false).

        Args:
            labelled: Whether a row must have a label and a time.

        Raises:
            UserError: A column is missing or of a type that cannot be read.
        """
        if self.time is not None and (labelled or self.time in raw.schema):
            format = self.config.time_format
            bad = self.when(raw).is_null() if labelled else raw.unreadable_time("`time`", self.time, format)
            yield unreadable(self.time, "data.time_format", format), bad
        if labelled:
            for name, task in self.tasks.items():
                yield from label_checks(name, task, raw)
            yield from self.contradiction_checks(raw)
            for weight in {weight.read_column: weight for weight in self.weights.values()}.values():
                yield from weight_checks(weight, raw)
            yield UNLABELLED, pl.all_horizontal(self.label(name, raw).is_null() for name in self.tasks)
        for feature in self.features.values():
            yield from feature.checks(raw)
