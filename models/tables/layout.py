"""Which embedding tables a schema needs under a config, and how each is looked up.

Letters: R rows of a table, d width of an embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from data_pipelines.batch import Schema, SparseSpec, TableSpec
from data_pipelines.errors import UserError

Pooling = Literal["sum", "mean", "last", "attention", "convolution"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]
Route = Literal["pooled", "weighted", "rows"]
OOV_ID = 1
"""The first OOV bucket: what ids of pruned rows become (see :meth:`models.tables.lookup.SparseTables.set_keep`)."""

_WIDE = "wide "


class TableConfig(BaseModel):
    """What one table does otherwise than the rest: ``model.tables.<table>``.

    Attributes:
        dim: Width of its embeddings.
        sharding: How it lies over the ranks: whole on one (``table_wise``), cut by rows or by columns over all, cut by
            rows over those of one node (``table_row_wise``), or whole on each (``data_parallel``); ``auto`` leaves it
            to TorchRec's planner. Cut by columns, row-wise Adagrad keeps a statistic for each piece of a row, so that
            its steps depend on the number of ranks. Lookups that do not pool (attention, sequences) know no nodes:
            there ``table_row_wise`` is ``row_wise``.
        rows: Keep only so many rows, for the ids in use: for a ``hash`` feature of very many ids (see
            :class:`models.tables.managed_ids.ManagedRows`). A row for each id where absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dim: int | None = Field(default=None, ge=1)
    sharding: Sharding = "auto"
    rows: int | None = Field(default=None, ge=1)


class TablesConfig(BaseModel):
    """Embedding tables and the pooling of their bags: the first part of ``model``.

    Attributes:
        dim: Width of an embedding where ``tables`` does not say otherwise.
        init_std: Standard deviation of the numbers tables start from. With 1e-4 an id means nothing until it has been
            seen, which serves where many are rare.
        tables: Exceptions by table name.
        pooling: By name of a feature, or of a history (then for all its columns). ``mean`` where absent. ``last``,
            ``attention`` and ``convolution`` are for histories.
        wide: Add the wide part: one number for each id, summed over all features (Wide & Deep, arXiv 1606.07792).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dim: int = Field(default=16, ge=1)
    init_std: float = Field(default=0.01, ge=0)
    tables: dict[str, TableConfig] = {}
    pooling: dict[str, Pooling] = {}
    wide: bool = False

    def table_dim(self, table: str) -> int:
        return self.tables.get(table, TableConfig()).dim or self.dim

    def table_rows(self, table: TableSpec) -> int:
        """Rows in memory: fewer than the table has ids, where they are managed."""
        return self.tables.get(table.name, TableConfig()).rows or table.rows

    def pooling_of(self, feature: SparseSpec) -> Pooling:
        by_feature = self.pooling.get(feature.name)
        by_history = self.pooling.get(feature.sequence) if feature.sequence else None
        return by_feature or by_history or "mean"


@dataclass(frozen=True)
class TableLayout:
    """How one embedding table is looked up.

    Attributes:
        name: Of the table. The wide part of table ``t`` is a table of its own, named ``wide t``.
        vocabulary: The schema's table whose ids it is indexed by.
        features: The sparse features that look it up.
        route: ``"pooled"`` bags, bags ``"weighted"`` by the log, or single ``"rows"``, pooled outside the lookup: the
            way of tables whose features do not all pool alike, or some of which are read as sequences.
        pooling: Of the lookup; meaningless for ``"rows"``.
        init_std: Standard deviation of its start values; a wide part starts from zero.
    """

    name: str
    vocabulary: str
    rows: int
    dim: int
    features: tuple[str, ...]
    route: Route
    pooling: Literal["sum", "mean"]
    init_std: float

    @property
    def wide(self) -> bool:
        return self.name.startswith(_WIDE)

    @property
    def key(self) -> str:
        """The table's name inside TorchRec's collections and plans."""
        return table_key(self.name)

    @property
    def stored_dim(self) -> int:
        """Columns in memory: FBGEMM wants a multiple of four. Those past ``dim`` are zero and stay zero."""
        return -(-self.dim // 4) * 4


def table_layouts(schema: Schema, config: TablesConfig) -> tuple[TableLayout, ...]:
    """The lookups that ``schema`` needs under ``config``, in the schema's order; wide tables last.

    Raises:
        UserError: ``config`` names a table, feature or history that the schema does not have, or asks a pooling that
            only histories have of another feature.
    """
    _check_names(schema, config)
    layouts = []
    for table in schema.tables:
        features = [feature for feature in schema.sparse if feature.table == table.name]
        if not features:
            continue
        modes = {config.pooling_of(feature) for feature in features if feature.kind != "id"} or {"sum"}
        weighted = {feature.weighted for feature in features}
        route: Route = "rows" if len(weighted) > 1 or len(modes) > 1 or not modes <= {"sum", "mean"} else "pooled"
        if route == "pooled" and weighted == {True}:
            route = "weighted"
        layouts.append(
            TableLayout(
                name=table.name,
                vocabulary=table.name,
                rows=config.table_rows(table),
                dim=config.table_dim(table.name),
                features=tuple(feature.name for feature in features),
                route=route,
                pooling="mean" if route == "pooled" and modes == {"mean"} else "sum",
                init_std=config.init_std,
            )
        )
    if config.wide:
        layouts += [replace(table, name=_WIDE + table.name, dim=1, init_std=0.0) for table in tuple(layouts)]
    return tuple(layouts)


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
        if pooling in ("last", "attention", "convolution") and not in_history:
            raise UserError(f"model.pooling.{name}: {pooling!r} needs a history; choose 'mean' or 'sum' for {name!r}.")
        if pooling in ("attention", "convolution") and name not in histories:
            history = features[name].sequence
            raise UserError(f"model.pooling.{name}: {pooling!r} reads a whole history; set model.pooling.{history}.")


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def table_key(name: str) -> str:
    """A table's name as TorchRec can take it: module names admit no dot and not every word (``items``, ``type``)."""
    return "table:" + quote(name, safe=" ").replace(".", "%2E")


def table_name(key: str) -> str:
    return unquote(key.removeprefix("table:"))
