"""THE encoder: every feature compiled once into a Polars expression over its vocabulary.

Training data, ablations, batch jobs and requests all go through the same object, which is saved with the artifact.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from pydantic import Field, FiniteFloat
from torch import Tensor

from data_pipelines.batch import MOST_ROWS, DenseSpec, Schema, SparseSpec
from data_pipelines.config.base import Config
from data_pipelines.disk.byte_planes import pack, pack_values, packing_order, unpack, unpack_values
from data_pipelines.disk.damage import intact, read_json
from data_pipelines.disk.file_names import below
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.fitting import fit
from data_pipelines.features.kinds.base import Fitted
from data_pipelines.features.kinds.relative import RelativeFeature
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Slots, Table, Vocabulary, spec
from data_pipelines.features.vocabulary_files import StoredValues, read_vocabulary, vocabulary, write_vocabulary
from data_pipelines.names import LIST

_PACKED = "encoder.xz"

RowsT = TypeVar("RowsT", pl.DataFrame, pl.LazyFrame)


class Encoder:
    """Maps raw columns to encoded ones: a function of (value, vocabulary), row by row.

    Args:
        plan: What the columns mean.
        selected: Names of the encoded features to give; all if ``None``.

    Attributes:
        plan: What the columns mean, those of features that are not encoded included.
        served: The plan of the features that are encoded.
        schema: The encoded features.

    Example:
        >>> encoder = rs.Dataset.open(Path("dataset")).encoder.select(["reader"])
        >>> encoder.encode(pl.LazyFrame({"reader": ["never seen", None]})).collect()["reader"].to_list()
        [1, 0]
    """

    def __init__(self, plan: Plan, fitted: Fitted, selected: Iterable[str] | None = None) -> None:
        self.plan = plan
        self._fitted = fitted
        chosen = None if selected is None else frozenset(selected)
        self._sparse = tuple(s for s in plan.specs.sparse if chosen is None or s.name in chosen)
        self._dense = tuple(d for d in plan.specs.dense if chosen is None or d.name in chosen)
        used = dict.fromkeys(s.table for s in self._sparse)
        self._tables: dict[str, Table] = {name: fitted.tables[name] for name in used}
        self.schema = Schema(
            tables=tuple(spec(name, table) for name, table in self._tables.items()),
            sparse=self._sparse,
            dense=self._dense,
            tasks=tuple(plan.tasks),
            after={name: task.after for name, task in plan.tasks.items() if task.after is not None},
            levels={name: task.levels for name, task in plan.tasks.items() if task.levels},
        )
        self._relative = plan.select(self.schema.feature_names).relative
        compared = [feature.of.name for feature in self._relative.values() if feature.of is not None]
        self.served = plan.select((*self.schema.feature_names, *compared))
        self._cache: dict[tuple[tuple[str, str], ...], list[pl.Expr]] = {}

    @property
    def config(self) -> DataConfig:
        """The ``data:`` block that the plan was made from."""
        return self.plan.config

    @staticmethod
    def fit(
        plan: Plan,
        train: pl.LazyFrame,
        earlier: "Encoder | None" = None,
        counted: Sequence[pl.DataFrame] | None = None,
    ) -> "Encoder":
        """Vocabularies, normalisations and buckets of the training rows, and of nothing else.

        Args:
            counted: What :func:`data_pipelines.features.fitting.count` gives for ``train``, where that was
                worked out elsewhere.
            earlier: An encoder to extend: its ids and numbers do not change, new values are appended.

        Raises:
            UserError: A column is missing or of a type its feature cannot read; or ``earlier`` has other features.
        """
        if earlier is None:
            return Encoder(plan, fit(plan, train, counted=counted))
        if plan.config.features != earlier.config.features:
            raise UserError("the features of the config are not those of the data set to extend: use its config.")
        return Encoder(plan, fit(plan, train, earlier._fitted, counted))

    def encode(self, rows: pl.LazyFrame, *, carry: Sequence[pl.Expr] = (), relate: bool = True) -> pl.LazyFrame:
        """The encoded columns of ``rows``, and the expressions of ``carry``.

        Ids are Int32, bags List(Int32), weights ``<bag>:weights`` List(Float32), numbers Float32 (several: Array).
        Histories and statistics read the columns that ``State.attach`` adds. Relative features take ``rows`` for whole
        lists: those of ``data.group``, or of the column ``:list`` where there is one; or they read columns of their own
        names.

        Args:
            rows: Raw rows.
            carry: More expressions to select.
            relate: With false, relative features are left to :meth:`relate`.

        Raises:
            UserError: ``rows`` lack a column, or have it in a type the feature cannot read.
        """
        expressions, waiting = self._expressions(rows.collect_schema(), relate=relate)
        encoded = rows.select(*expressions, *carry)
        return self.relate(encoded).drop(LIST) if waiting else encoded

    def encode_few(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What :meth:`encode` gives for a few rows, in a third of the time: one feature after the other.

        Expressions that Polars evaluates side by side call Python from its threads, which then wait for each other.
        """
        expressions, waiting = self._expressions(rows.schema, relate=True)
        names = (expression.meta.output_name() for expression in expressions)
        # with_columns repeats a constant in every row
        encoded = pl.DataFrame([rows.with_columns(e)[name] for e, name in zip(expressions, names, strict=True)])
        return self.relate(encoded).drop(LIST) if waiting else encoded

    def _expressions(self, schema: pl.Schema, *, relate: bool) -> tuple[list[pl.Expr], bool]:
        """What encodes rows of ``schema``, and whether :meth:`relate` has to follow, for which there are lists then."""
        key = tuple((name, str(dtype)) for name, dtype in schema.items())
        if key not in self._cache:
            self._cache[key] = self._compile(schema)
        raw = RawColumns(schema)
        if not (relate and self._waiting(raw)):
            return self._cache[key], False
        lists = pl.col(LIST) if LIST in schema else self.plan.list_key(raw).alias(LIST)
        return [*self._cache[key], lists], True

    def relate(self, encoded: RowsT) -> RowsT:
        """Rows of whole lists, encoded without ``relate``, with their relative features."""
        there = encoded.lazy().collect_schema().names()
        waiting = [feature for feature in self.plan.relative.values() if feature.source in there]
        if not waiting:
            return encoded
        # a row that is in no list is a list of its own
        key = pl.when(pl.col(LIST) == 0).then(pl.int_range(pl.len(), dtype=pl.UInt64)).otherwise(pl.col(LIST))
        own = [expression for feature in waiting for expression in feature.relate(key, self.schema.feature_names)]
        found = encoded.lazy().with_columns(own).drop(feature.source for feature in waiting)
        return found if isinstance(encoded, pl.LazyFrame) else found.collect()

    def _compile(self, schema: pl.Schema) -> list[pl.Expr]:
        raw = RawColumns(schema)
        specs: list[SparseSpec | DenseSpec] = [*self._sparse, *self._dense]
        waiting = self._waiting(raw)
        expressions = [
            expression
            for spec in specs
            if (feature := self.plan.feature(spec.name)).name not in waiting
            for expression in feature.encode(spec, raw, self._fitted)
        ]
        expressions += [feature.value(raw, self._fitted) for feature in waiting.values()]
        return expressions

    def _waiting(self, raw: RawColumns) -> dict[str, RelativeFeature]:
        """The features that :meth:`relate` works out, and rows do not bring themselves."""
        return {name: feature for name, feature in self._relative.items() if not feature.carried(raw)}

    def warm(self) -> None:
        """Build the index of every vocabulary before the first :meth:`encode`: a second for millions of values."""
        for table in self._tables.values():
            if isinstance(table, Vocabulary):
                table.warm()

    @property
    def tables(self) -> Mapping[str, Table]:
        """The id space of each table in use."""
        return self._tables

    @property
    def numbers(self) -> Mapping[str, Sequence[float]]:
        """By feature, the numbers that were fitted on the training rows: means, deviations, edges of buckets."""
        return self._fitted.numbers

    def vocabulary(self, table: str) -> pl.DataFrame:
        """``value``, ``id`` and training ``count`` of each row of ``table`` past the reserved ones."""
        return self._fitted.tables[table].frame()

    def select(self, features: Iterable[str]) -> "Encoder":
        """The encoder of fewer features, named as in the config (``likes``) or in the schema (``likes.age``).

        Raises:
            UserError: There is no such feature.
        """
        wanted, chosen = list(features), set[str]()
        for name in wanted:
            found = {f for f in self.schema.feature_names if f == name or f.split(".")[0] == name}
            if not found:
                raise UserError(f"no feature is named {name!r}; there are {', '.join(self.schema.feature_names)}.")
            chosen |= found
        return Encoder(self.plan, self._fitted, chosen)

    def prune(self, keep: Mapping[str, np.ndarray]) -> "Encoder":
        """The encoder whose tables have only the rows that are true in ``keep[table]`` (bool, one per row).

        Kept values are renumbered in their order; dropped values become OOV; reserved rows are always kept.
        """
        tables = dict(self._fitted.tables)
        for name, mask in keep.items():
            if mask.shape != (tables[name].rows,):
                raise UserError(f"table {name!r} has {tables[name].rows} rows, and the mask {mask.shape}.")
            tables[name] = tables[name].prune(mask)
        return Encoder(self.plan, Fitted(tables, self._fitted.numbers), self.schema.feature_names)

    def as_served(self) -> "Encoder":
        """The encoder of an artifact: features that are fixed when serving have their fixed value."""
        return Encoder(Plan.of(self.config.as_served()), self._fitted, self.schema.feature_names)

    def in_packing_order(self) -> tuple["Encoder", dict[str, np.ndarray]]:
        """The encoder whose values stand in the order that packs best, and for each of its ids the id it had before.

        Frequent values are then no longer adjacent: for tables that are read as a whole.
        """
        tables, before = dict(self._fitted.tables), {}
        for name, table in self._tables.items():
            if isinstance(table, Vocabulary):
                order = packing_order(table.values)
                tables[name] = Vocabulary(table.values[order], table.counts[order], table.oov_buckets)
                before[name] = np.concatenate([np.arange(table.reserved), order + table.reserved])
        return Encoder(self.plan, Fitted(tables, self._fitted.numbers), self.schema.feature_names), before

    def save(self, folder: Path, *, slim: bool = False, packed: bool = False) -> None:
        """Write ``encoder.json`` and ``vocabularies/<table>.parquet`` into ``folder``.

        Args:
            slim: Leave out what encoding does not need (counts, and ids, which follow from the order). Small
                vocabularies are compressed hard, large ones are written with their index, to be memory-mapped:
                ``vocabularies/<table>.safetensors``.
            packed: Write all of it into ``encoder.xz`` instead, without counts (see
                :mod:`data_pipelines.disk.byte_planes`).
        """
        vocabularies = {name: table for name, table in self._tables.items() if isinstance(table, Vocabulary)}
        if packed:
            tensors = {
                f"{at}:{part}": tensor
                for at, table in enumerate(vocabularies.values())
                for part, tensor in pack_values(table.values).items()
            }
            (folder / _PACKED).write_bytes(pack(tensors, json.dumps(self._content(), ensure_ascii=False)))
            return
        (folder / "vocabularies").mkdir(parents=True)
        for name, table in vocabularies.items():
            write_vocabulary(folder, name, table, slim=slim)
        (folder / "encoder.json").write_text(json.dumps(self._content(), indent=1, ensure_ascii=False))

    def _content(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "features": self.schema.feature_names,
            "numbers": self._fitted.numbers,
            "tables": {
                name: {"oov_buckets": table.oov_buckets} | ({"size": table.size} if isinstance(table, Slots) else {})
                for name, table in self._tables.items()
            },
        }

    @staticmethod
    def load(folder: Path) -> "Encoder":
        """The encoder that :meth:`save` wrote into ``folder``.

        Raises:
            UserError: A file is missing or damaged, or the files do not fit together.
        """
        packed = below(folder, _PACKED)
        if packed.exists():
            with intact(packed):
                tensors, text = unpack(packed.read_bytes())
                content = _Content.model_validate_json(text)
                parts = [_below(tensors, at) for at, _ in enumerate(content.vocabularies)]
                frames = [pl.DataFrame(unpack_values(part)) for part in parts]
                return content.encoder(dict(zip(content.vocabularies, frames, strict=True)))
        path = below(folder, "encoder.json")
        content = read_json(path, _Content)
        values = {name: read_vocabulary(folder, name) for name in content.vocabularies}
        with intact(path):
            return content.encoder(values)


class _TableEntry(Config):
    """The id space of a table: of ``size`` slots, or of a vocabulary where that is absent."""

    oov_buckets: int = Field(ge=1, le=MOST_ROWS)
    size: int | None = Field(default=None, ge=1, le=MOST_ROWS)


class _Content(Config):
    """What ``encoder.json`` holds."""

    config: DataConfig
    features: tuple[str, ...]
    numbers: dict[str, list[FiniteFloat]]
    tables: dict[str, _TableEntry]

    @property
    def vocabularies(self) -> list[str]:
        """Names of the tables whose values are stored in separate files."""
        return [name for name, entry in self.tables.items() if entry.size is None]

    def encoder(self, values: Mapping[str, StoredValues]) -> Encoder:
        """The encoder with these ``values`` of its vocabularies.

        Raises:
            ValueError: A table or a number is missing or unlike what the features ask for: ids could leave the table.
        """
        tables: dict[str, Table] = {}
        for name, entry in self.tables.items():
            if entry.size is None:
                tables[name] = vocabulary(name, values[name], entry.oov_buckets)
            else:
                tables[name] = Slots(entry.size, entry.oov_buckets)
        plan = Plan.of(self.config)
        specs = plan.specs
        missing = {spec.table for spec in specs.sparse if spec.name in self.features} - tables.keys()
        if missing or not {*self.features} <= {s.name for s in specs.sparse} | {d.name for d in specs.dense}:
            raise ValueError(f"it has features of other tables than its own ({', '.join(sorted(missing)) or 'none'})")
        for name, table in tables.items():
            size = table.size if isinstance(table, Slots) else specs.slots.get(name)
            if size != specs.slots.get(name):
                raise ValueError(f"table {name!r} has {size} slots, and its feature makes {specs.slots.get(name)}")
        for name, feature in plan.features.items():
            feature.check_fitted(self.numbers.get(name))
        return Encoder(plan, Fitted(tables, self.numbers), self.features)


def _below(tensors: Mapping[str, Tensor], at: int) -> dict[str, Tensor]:
    """The tensors of the vocabulary at place ``at``, by their names within it."""
    return {name.removeprefix(f"{at}:"): part for name, part in tensors.items() if name.startswith(f"{at}:")}
