"""The part of the ``model`` block that configures embedding tables."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from data_pipelines.batch import SparseSpec, TableSpec
from data_pipelines.config.base import Config
from models.tables.poolings import BUILT_IN, pooling_class, pooling_names


def _known(name: str) -> str:
    if name not in pooling_names():
        raise ValueError(f"there is no pooling {name!r}; there are {', '.join(pooling_names())}")
    return name


Pooling = Annotated[str, AfterValidator(_known)]
"""The name of a pooling: `sum`, `mean`, `last`, or one that is registered for whole histories."""
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]
Memory = Literal["auto", "hbm", "cached", "host"]


class TableConfig(Config):
    """Exceptions for one table: ``model.tables.<table>``."""

    dim: int | None = Field(default=None, ge=1, description="Width of its embeddings.")
    sharding: Sharding = Field(
        default="auto",
        description="How it is sharded over the ranks: whole on one (`table_wise`), by rows or columns over all "
        "(`row_wise`, `column_wise`), by rows over one node (`table_row_wise`), or replicated (`data_parallel`); "
        "`auto` leaves it to TorchRec's planner. With `column_wise`, row-wise Adagrad keeps one statistic per piece of "
        "a row, so that its steps depend on the number of ranks. For lookups that do not pool (attention, sequences), "
        "`table_row_wise` is the same as `row_wise`.",
    )
    memory: Memory = Field(
        default="auto",
        description="Where a training on a GPU keeps it: in the memory of the card (`hbm`), in that of the machine "
        "with a cache of a fifth of its rows on the card (`cached`), or in that of the machine alone (`host`); with "
        "`auto`, the planner takes `hbm` where the tables fit and `cached` where they do not. No effect on a CPU.",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="Keep only this many rows, for the ids in use: for a `hash` feature of very many ids (see "
        "`models.tables.managed_ids.ManagedRows`). If absent, every id has a row.",
    )


class TablesConfig(Config):
    """Embedding tables and the pooling of their bags: the first part of ``model``."""

    dim: int = Field(default=16, ge=1, description="Width of an embedding unless `tables` says otherwise.")
    init_std: float = Field(
        default=0.01,
        ge=0,
        description="Standard deviation of the start values of tables. With 1e-4, an id has nearly no effect until it "
        "has been trained, which helps if many ids are rare.",
    )
    tables: dict[str, TableConfig] = Field(default={}, description="Exceptions by table name.")
    pooling: dict[str, Pooling] = Field(
        default={},
        description="By name of a feature, or of a history (then for all its columns): `sum`, `mean` (where absent), "
        "or for histories `last`, `attention`, `convolution`, `hstu`, `bst`.",
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
        """Rows in memory: fewer than the table has ids if they are managed."""
        return self.tables.get(table.name, TableConfig()).rows or table.rows

    def pooling_of(self, feature: SparseSpec) -> Pooling:
        """How the bags of a feature are pooled."""
        by_feature = self.pooling.get(feature.name)
        by_history = self.pooling.get(feature.sequence) if feature.sequence else None
        return by_feature or by_history or "mean"

    def named_classes(self) -> Iterator[type]:
        return (pooling_class(name) for name in self.pooling.values() if name not in BUILT_IN)
