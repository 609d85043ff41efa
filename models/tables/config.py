"""The part of the ``model`` block that configures embedding tables."""

from typing import Literal

from pydantic import Field

from data_pipelines.batch import SparseSpec, TableSpec
from data_pipelines.config.base import Config

Pooling = Literal["sum", "mean", "last", "attention", "convolution"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]


class TableConfig(Config):
    """What one table does otherwise than the rest: ``model.tables.<table>``."""

    dim: int | None = Field(default=None, ge=1, description="Width of its embeddings.")
    sharding: Sharding = Field(
        default="auto",
        description="How it is sharded over the ranks: whole on one (`table_wise`), cut by rows or columns over all, "
        "cut by rows over one node (`table_row_wise`), or whole on each (`data_parallel`); `auto` leaves it to "
        "TorchRec's planner. Cut by columns, row-wise Adagrad keeps a statistic for each piece of a row, so that its "
        "steps depend on the number of ranks. Lookups that do not pool (attention, sequences) know no nodes: there "
        "`table_row_wise` is `row_wise`.",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="Keep only so many rows, for the ids in use: for a `hash` feature of very many ids (see "
        "`models.tables.managed_ids.ManagedRows`). A row for each id where absent.",
    )


class TablesConfig(Config):
    """Embedding tables and the pooling of their bags: the first part of ``model``."""

    dim: int = Field(default=16, ge=1, description="Width of an embedding where `tables` does not say otherwise.")
    init_std: float = Field(
        default=0.01,
        ge=0,
        description="Standard deviation of the numbers tables start from. With 1e-4 an id means nothing until it has "
        "been seen, which serves where many are rare.",
    )
    tables: dict[str, TableConfig] = Field(default={}, description="Exceptions by table name.")
    pooling: dict[str, Pooling] = Field(
        default={},
        description="By name of a feature, or of a history (then for all its columns). `mean` where absent. `last`, "
        "`attention` and `convolution` are for histories.",
    )
    wide: bool = Field(
        default=False,
        description="Add the wide part: one number for each id, summed over all features (Wide & Deep, arXiv "
        "1606.07792).",
    )

    def table_dim(self, table: str) -> int:
        """Width of a table's embeddings."""
        return self.tables.get(table, TableConfig()).dim or self.dim

    def table_rows(self, table: TableSpec) -> int:
        """Rows in memory: fewer than the table has ids, where they are managed."""
        return self.tables.get(table.name, TableConfig()).rows or table.rows

    def pooling_of(self, feature: SparseSpec) -> Pooling:
        """How the bags of a feature are pooled."""
        by_feature = self.pooling.get(feature.name)
        by_history = self.pooling.get(feature.sequence) if feature.sequence else None
        return by_feature or by_history or "mean"
