"""The lookup plan: which tables a schema needs under a config, and how each feature is looked up in them.

Sharded, plain and quantized tables all execute the same plan.

Letters: R rows of a table, d width of an embedding.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote, unquote

from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode

from data_pipelines.batch import Schema, SparseSpec
from data_pipelines.errors import UserError
from models.tables.config import Pooling, TablesConfig
from models.tables.poolings import SIMPLE

Route = Literal["pooled", "weighted", "rows"]
OOV_ID = 1
"""The first OOV bucket, which replaces ids of pruned rows (:meth:`models.tables.lookup.SparseTables.set_keep`)."""

_WIDE = "wide "
_POOLING: Mapping[Pooling, PoolingMode] = {"sum": PoolingMode.SUM, "mean": PoolingMode.MEAN}


@dataclass(frozen=True)
class Lookup:
    """One feature looked up in one table.

    Attributes:
        table: Name of the table.
        vocabulary: The schema's table whose ids it is indexed by.
        pooling: ``NONE`` if the ranker reads the rows as a sequence. For bags of one id, for which sum and mean are the
            same, the most common pooling of the other bags, so that they can share a call.
        single: Every bag has exactly one id.
        weighted: The bags have weights of their own; those of :attr:`LookupPlan.mean_weighted` are divided by their sum
            first.
        wide: The result belongs to the wide part.
    """

    feature: str
    table: str
    vocabulary: str
    pooling: PoolingMode
    single: bool
    weighted: bool
    wide: bool


@dataclass(frozen=True)
class TableLayout:
    """One embedding table and the lookups in it.

    Attributes:
        name: The wide part of table ``t`` is a table of its own, named ``wide t``.
        vocabulary: The schema's table whose ids it is indexed by.
        lookups: One per feature that reads it.
        route: ``"pooled"`` for bags; ``"weighted"`` for bags with weights of the log; ``"rows"`` for single rows that
            are pooled outside the lookup, if the features differ in pooling or are read as sequences.
        pooling: The pooling of all lookups; ``NONE`` for ``"rows"``.
        init_std: Standard deviation of its start values; a wide part starts from zero.
    """

    name: str
    vocabulary: str
    rows: int
    dim: int
    lookups: tuple[Lookup, ...]
    route: Route
    pooling: PoolingMode
    init_std: float

    @property
    def wide(self) -> bool:
        return self.name.startswith(_WIDE)

    @property
    def features(self) -> tuple[str, ...]:
        """The sparse features that look it up."""
        return tuple(lookup.feature for lookup in self.lookups)

    @property
    def key(self) -> str:
        """The table's name inside TorchRec's collections and plans."""
        return table_key(self.name)

    @property
    def stored_dim(self) -> int:
        """Columns in memory: FBGEMM needs a multiple of four. Those after ``dim`` are zero and stay zero."""
        return -(-self.dim // 4) * 4

    def by_rows(self) -> "TableLayout":
        """The same table, looked up row by row and pooled outside the lookup."""
        return replace(self, route="rows", pooling=PoolingMode.NONE)


@dataclass(frozen=True)
class LookupPlan:
    """All lookups of a ranker.

    Attributes:
        tables: In the schema's order; wide tables last.
        lookups: Deep before wide, each in the order of the schema's features.
        mean_weighted: The features whose bags' weights are divided by their sum before they are looked up, so that the
            weighted sum is the weighted mean.
    """

    tables: tuple[TableLayout, ...]
    lookups: tuple[Lookup, ...]
    mean_weighted: tuple[str, ...]

    def by_rows(self, names: Collection[str]) -> "LookupPlan":
        """The plan with the tables ``names`` looked up row by row."""
        return replace(self, tables=tuple(t.by_rows() if t.name in names else t for t in self.tables))


def lookup_plan(schema: Schema, config: TablesConfig) -> LookupPlan:
    """The plan of ``schema`` under ``config``.

    Raises:
        UserError: ``config`` names a table, feature or history that the schema does not have, or gives another feature
            a pooling for histories.
    """
    _check_names(schema, config)
    lookups = [
        _lookup(spec, schema, config, wide=wide)
        for wide in ((False, True) if config.wide else (False,))
        for spec in schema.sparse
    ]
    tables = []
    for wide in (False, True) if config.wide else (False,):
        for table in schema.tables:
            name = _WIDE + table.name if wide else table.name
            own = tuple(lookup for lookup in lookups if lookup.table == name)
            if own:
                route, pooling = _route([spec for spec in schema.sparse if spec.table == table.name], config)
                dim, init_std = (1, 0.0) if wide else (config.table_dim(table.name), config.init_std)
                rows = config.table_rows(table)
                tables.append(TableLayout(name, table.name, rows, dim, own, route, pooling, init_std))
    means = [s.name for s in schema.sparse if s.weighted and s.kind != "id" and config.pooling_of(s) == "mean"]
    return LookupPlan(tuple(tables), tuple(lookups), tuple(means))


def _lookup(spec: SparseSpec, schema: Schema, config: TablesConfig, *, wide: bool) -> Lookup:
    asked, single = config.pooling_of(spec), spec.kind == "id"
    if spec.weighted:
        pooling = PoolingMode.SUM
    elif single:
        pooling = _most_common(schema, config)
    else:
        pooling = _POOLING.get(asked, PoolingMode.MEAN if wide else PoolingMode.NONE)
    name = _WIDE + spec.table if wide else spec.table
    return Lookup(spec.name, name, spec.table, pooling, single, spec.weighted, wide)


def _most_common(schema: Schema, config: TablesConfig) -> PoolingMode:
    bags = [config.pooling_of(spec) for spec in schema.sparse if spec.kind != "id" and not spec.weighted]
    return PoolingMode.SUM if bags.count("sum") > bags.count("mean") else PoolingMode.MEAN


def _route(features: Collection[SparseSpec], config: TablesConfig) -> tuple[Route, PoolingMode]:
    """How the features of one table are looked up: together, if that is possible."""
    asked: set[Pooling] = {config.pooling_of(f) for f in features if f.kind != "id"} or {"sum"}
    weighted = {feature.weighted for feature in features}
    if len(weighted) > 1 or len(asked) > 1 or not asked <= set(_POOLING):
        return "rows", PoolingMode.NONE
    if weighted == {True}:
        return "weighted", PoolingMode.SUM
    return "pooled", _POOLING[asked.pop()]


def _check_names(schema: Schema, config: TablesConfig) -> None:
    tables = {table.name for table in schema.tables}
    for name in config.tables:
        if name not in tables:
            raise UserError(f"model.tables.{name}: there is no table {name!r}; the tables are {_names(tables)}.")
    histories = {feature.sequence for feature in schema.sparse if feature.sequence}
    features = {feature.name: feature for feature in schema.sparse}
    for name, pooling in config.pooling.items():
        if name not in features and name not in histories:
            raise UserError(
                f"model.pooling.{name}: there is no bag or history {name!r}, only {_names({*features, *histories})}."
            )
        in_history = name in histories or features[name].sequence is not None
        if pooling not in _POOLING and not in_history:
            raise UserError(f"model.pooling.{name}: {pooling!r} needs a history; choose 'mean' or 'sum' for {name!r}.")
        if pooling not in SIMPLE and name not in histories:
            history = features[name].sequence
            raise UserError(f"model.pooling.{name}: {pooling!r} reads a whole history; set model.pooling.{history}.")


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def table_key(name: str) -> str:
    """A table's name as TorchRec can take it: module names admit no dot and not every word (``items``, ``type``)."""
    return "table:" + quote(name, safe=" ").replace(".", "%2E")


def table_name(key: str) -> str:
    return unquote(key.removeprefix("table:"))
