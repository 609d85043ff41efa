"""Sums over the rows and columns of tables that are sharded over several ranks.

To choose rows, a lever needs the norm of every row of a table. Each rank sums its numbers and counts them; after the
all-reduce the sums are scaled by the counts, so that a table that is replicated (data-parallel) and one that is sharded
by rows or columns give the same results.

Letters: R rows, d embedding dimension.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipelines.batch import Batch, TableSpec
from data_pipelines.errors import UserError
from models.tables.lookup import RowTransform, SparseTables
from models.tables.plan import OOV_ID, TableLayout, lookup_plan
from models.tables.rows import TableShard, local_rows

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


def chosen_tables(tables: nn.Module, names: Collection[str], key: str) -> list[TableLayout]:
    """Layouts of the tables whose vocabulary is in ``names`` (all when empty), with their wide parts.

    Raises:
        UserError: A name is not a table; ``key`` is the config key that has it.
    """
    assert isinstance(tables, SparseTables)
    known = {layout.vocabulary for layout in tables.layouts}
    check_names(names, known, key, "table")
    return [layout for layout in tables.layouts if not names or layout.vocabulary in names]


def check_names(names: Collection[str], known: Collection[str], key: str, what: str) -> None:
    """Raise a ``UserError`` for the first of ``names`` that is not ``known``."""
    for name in names:
        if name not in known:
            raise UserError(f"{key}: there is no {what} {name!r}; choose from {', '.join(sorted(known))}.")


def shards(tables: nn.Module, layouts: Collection[TableLayout]) -> Iterator[tuple[TableLayout, TableShard]]:
    """The shards this rank holds of ``layouts``."""
    by_name = {layout.name: layout for layout in layouts}
    for shard in local_rows(tables):
        if shard.table in by_name:
            yield by_name[shard.table], shard


def row_sums(
    tables: nn.Module, layouts: Collection[TableLayout], of: Callable[[Tensor, TableShard], Tensor]
) -> dict[str, Tensor]:
    """(R,) sums over the columns of ``of(weight, shard)`` by table name, over all ranks."""
    sums = {layout.name: torch.zeros(2, layout.rows) for layout in layouts}
    for layout, shard in shards(tables, layouts):
        values = of(shard.weight, shard).float().cpu()
        rows = slice(shard.row_offset, shard.row_offset + len(values))
        sums[layout.name][0, rows] += values.sum(1)
        sums[layout.name][1, rows] += values.shape[1]
    return {layout.name: _reduced(sums[layout.name], layout.dim) for layout in layouts}


def column_sums(
    tables: nn.Module, layouts: Collection[TableLayout], of: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """(d,) sums over the rows of ``of(weight)`` by table name, over all ranks."""
    sums = {layout.name: torch.zeros(2, layout.dim) for layout in layouts}
    for layout, shard in shards(tables, layouts):
        values = of(shard.weight).float().cpu()
        columns = slice(shard.col_offset, shard.col_offset + values.shape[1])
        sums[layout.name][0, columns] += values.sum(0)
        sums[layout.name][1, columns] += len(values)
    return {layout.name: _reduced(sums[layout.name], layout.rows) for layout in layouts}


def row(tables: nn.Module, layouts: Collection[TableLayout], index: int) -> dict[str, Tensor]:
    """Row ``index`` (d,) of every table, on all ranks."""

    def only(shard: TableShard) -> Tensor:
        at = index - shard.row_offset
        held = 0 <= at < len(shard.weight)
        return shard.weight[at : at + 1].float().cpu() if held else torch.zeros(0, shard.weight.shape[1])

    sums = {layout.name: torch.zeros(2, layout.dim) for layout in layouts}
    for layout, shard in shards(tables, layouts):
        values = only(shard)
        columns = slice(shard.col_offset, shard.col_offset + values.shape[1])
        sums[layout.name][0, columns] += values.sum(0)
        sums[layout.name][1, columns] += len(values)
    return {name: _reduced(value, 1) for name, value in sums.items()}


def squared_distance_to_oov(tables: nn.Module, layouts: Collection[TableLayout]) -> dict[str, Tensor]:
    """(R,) squared distance of each row to the OOV row by table name: what redirecting the row would change."""
    oov = row(tables, layouts, OOV_ID)

    def distance(weight: Tensor, shard: TableShard) -> Tensor:
        columns = oov[shard.table][shard.col_offset : shard.col_offset + weight.shape[1]]
        return (weight - columns.to(weight.device)).square()

    return row_sums(tables, layouts, distance)


def transform_rows(ranker: "Ranker", transforms: Mapping[str, RowTransform]) -> None:
    """Before sharding: add a transform to the rows that are looked up in a table, after its earlier transforms."""
    tables = ranker.tables
    assert isinstance(tables, SparseTables)
    together = dict(tables.row_transforms)
    for name, transform in transforms.items():
        first = together.get(name)
        together[name] = transform if first is None else partial(_one_after_the_other, first, transform)
    device = next(tables.parameters()).device
    ranker.tables = SparseTables(ranker.schema, ranker.config, device=device, row_transforms=together)
    for vocabulary, keep in tables.keep.items():
        ranker.tables.set_keep(vocabulary, keep)


def _one_after_the_other(first: RowTransform, second: RowTransform, rows_Ld: Tensor, ids_L: Tensor) -> Tensor:
    return second(first(rows_Ld, ids_L), ids_L)


def kept_tables(weights: "Weights") -> dict[str, Tensor]:
    """(R,) bool by table name: the rows that an artifact keeps."""
    kept = {}
    for layout in lookup_plan(weights.schema, weights.config).tables:
        table_Rd = weights.tables[layout.name]
        mask = weights.keep.get(layout.vocabulary)
        kept[layout.name] = table_Rd if mask is None else table_Rd[mask]
    return kept


def lookup_counts(weights: "Weights", batches: Iterable[Batch]) -> dict[str, Tensor]:
    """(R,) by table name: how often each row that an artifact keeps is looked up in ``batches``."""
    table_of = {feature.name: feature.table for feature in weights.schema.sparse}
    counts = {table.name: torch.zeros(table.rows) for table in weights.schema.tables}
    for batch in batches:
        for bags in filter(None, (batch.sparse, batch.weighted)):
            for feature, bag in bags.to_dict().items():
                rows = counts[table_of[feature]]
                rows += torch.bincount(bag.values().long(), minlength=len(rows))
    return {
        layout.name: counts[layout.vocabulary][weights.keep.get(layout.vocabulary, slice(None))]
        for layout in lookup_plan(weights.schema, weights.config).tables
    }


def reserved_rows(tables: Collection[TableSpec], vocabulary: str) -> int:
    """Rows of a vocabulary that stand for null and OOV, and are never removed."""
    return next(table.reserved for table in tables if table.name == vocabulary)


def _reduced(sum_and_count: Tensor, full: int) -> Tensor:
    """All ranks' sums for ``full`` terms each, from (2, n) sums and numbers of terms."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sum_and_count)
    return sum_and_count[0] * (full / sum_and_count[1].clamp_min(1))
