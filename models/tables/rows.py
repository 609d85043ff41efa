"""Access to the rows of tables, sharded or not: views of shards, start values, parts of a state dict.

Letters: R rows of a table, d width of an embedding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import xxhash
from fbgemm_gpu.split_embedding_configs import EmbOptimType as OptimType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from data_pipelines.batch import Schema
from models.tables.config import TablesConfig
from models.tables.plan import TableLayout, lookup_plan, table_name

_INIT_BLOCK = 1 << 16


@runtime_checkable
class LaidOut(Protocol):
    """A module that knows the layouts of the tables inside it, such as :class:`models.tables.lookup.SparseTables`."""

    layouts: tuple[TableLayout, ...]


def _layouts(module: nn.Module) -> dict[str, TableLayout]:
    return {t.name: t for m in module.modules() if isinstance(m, LaidOut) for t in m.layouts}


@dataclass(frozen=True)
class TableShard:
    """The part of a table that this process holds: ``weight`` is a writable view of rows and columns from an offset.

    ``squares`` are the sums of squared gradients of a fused Adagrad, by row (r,) or by value (r, c); ``None`` for any
    other optimizer.
    """

    table: str
    row_offset: int
    col_offset: int
    weight: Tensor
    squares: Tensor | None = None


def local_rows(module: nn.Module) -> Iterator[TableShard]:
    """Every shard that this process holds of the tables in ``module``, with any kernel and sharding.

    Columns that only pad a table for FBGEMM are left out. Read and write the views before the next lookup: rows that a
    GPU had cached are written back first (:func:`settle_caches`).
    """
    layouts = _layouts(module)
    for key, row_offset, col_offset, weight, squares in _stored_shards(module):
        name = table_name(key)
        columns = max(0, layouts[name].dim - col_offset)
        if squares is not None and squares.dim() == 2:
            squares = squares[:, :columns]
        yield TableShard(name, row_offset, col_offset, weight[:, :columns], squares)


def _stored_shards(module: nn.Module) -> Iterator[tuple[str, int, int, Tensor, Tensor | None]]:
    for child in module.modules():
        if isinstance(child, EmbeddingBagCollection | EmbeddingCollection):
            plain = child.embedding_bags if isinstance(child, EmbeddingBagCollection) else child.embeddings
            for key, table in plain.items():
                yield key, 0, 0, table.weight.detach(), None
        else:
            for kernel in _kernels(child):
                _settle(kernel)
                tables, weights = kernel.config.embedding_tables, kernel.split_embedding_weights()
                for table, weight, squares in zip(tables, weights, _squares(kernel, len(tables)), strict=True):
                    offsets = table.local_metadata.shard_offsets if table.local_metadata else (0, 0)
                    yield table.name, offsets[0], offsets[1], weight.detach(), squares


def _kernels(collection: nn.Module) -> Iterator[Any]:
    """The kernels of a sharded collection; none for any other module."""
    if isinstance(collection, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
        for lookup in collection._lookups:
            grouped = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
            yield from grouped._emb_modules


def settle_caches(module: nn.Module) -> None:
    """Write the rows that a GPU has cached back to their tables, and empty the caches.

    The tables can then be read and written until the next lookup. Nothing happens to tables without a cache.
    """
    for child in module.modules():
        for kernel in _kernels(child):
            _settle(kernel)


def _settle(kernel: Any) -> None:
    kernel.flush()
    kernel.purge()


def _squares(kernel: Any, tables: int) -> list[Tensor | None]:
    """The sums of squared gradients of a kernel's tables, if it has a fused Adagrad."""
    if getattr(kernel.emb_module, "optimizer", None) not in (OptimType.EXACT_ADAGRAD, OptimType.EXACT_ROWWISE_ADAGRAD):
        return [None] * tables
    return [states[0] for states in kernel.emb_module.split_optimizer_states()]


@torch.no_grad()
def initialise_tables(module: nn.Module, seed: int = 0) -> None:
    """Fill the tables in ``module`` with small normal numbers that depend only on seed, table, row and column.

    The start values are therefore the same for any number of processes and any sharding. They are drawn on the device
    of the table: a GPU's generator gives other numbers than a CPU's. The global random state does not change.
    """
    layouts = _layouts(module)
    for key, row_offset, col_offset, weight, _ in _stored_shards(module):
        layout = layouts[table_name(key)]
        end = row_offset + weight.shape[0]
        for block in range(row_offset // _INIT_BLOCK, -(-end // _INIT_BLOCK)):
            rows = min(_INIT_BLOCK, layout.rows - block * _INIT_BLOCK)
            values = start_values(layout, rows, f"{seed}/{layout.name}/{block}", weight.device)
            first, last = max(row_offset, block * _INIT_BLOCK), min(end, block * _INIT_BLOCK + rows)
            taken = values[first - block * _INIT_BLOCK : last - block * _INIT_BLOCK]
            weight[first - row_offset : last - row_offset] = taken[:, col_offset : col_offset + weight.shape[1]]


@torch.no_grad()
def fill_tables(module: nn.Module, tables: Mapping[str, Tensor]) -> None:
    """Copy this process's part of whole (R, at least d) ``tables`` into ``module``; tables that are not given stay."""
    for shard in local_rows(module):
        if shard.table in tables:
            rows = slice(shard.row_offset, shard.row_offset + len(shard.weight))
            columns = slice(shard.col_offset, shard.col_offset + shard.weight.shape[1])
            shard.weight.copy_(tables[shard.table][rows, columns])


def start_values(layout: TableLayout, rows: int, name: str, device: torch.device) -> Tensor:
    """(rows, stored columns) numbers that depend on ``name`` and the kind of ``device`` alone."""
    values = torch.zeros(rows, layout.stored_dim, device=device)
    if layout.init_std:
        generator = torch.Generator(device).manual_seed(xxhash.xxh3_64_intdigest(name.encode()) >> 1)
        drawn = torch.randn(rows, layout.dim, generator=generator, device=device)
        values[:, : layout.dim] = drawn * layout.init_std
    return values


def table_names(state: Iterable[str]) -> dict[str, str]:
    """Table name by key of a ranker's ``state_dict``, for the keys that are embedding tables."""
    names = {}
    for key in state:
        parts = key.split(".")
        if parts[-1] == "weight" and len(parts) >= 3 and parts[-3] in ("embedding_bags", "embeddings"):
            names[key] = table_name(parts[-2])
    return names


def table_weights(state: Mapping[str, Tensor], schema: Schema, config: TablesConfig) -> dict[str, Tensor]:
    """(R, d) by table name, from a whole (unsharded) ``state_dict`` of a ranker; padding columns are cut off."""
    dims = {layout.name: layout.dim for layout in lookup_plan(schema, config).tables}
    return {table: state[key][:, : dims[table]] for key, table in table_names(state).items()}


def keep_masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(R,) bool by vocabulary: the masks of :meth:`SparseTables.set_keep` in a ranker's ``state_dict``."""
    prefix = "tables.keep_"
    return {table_name(key.removeprefix(prefix)): mask for key, mask in state.items() if key.startswith(prefix)}


def grow_table(weight_Rd: Tensor, rows: int, *, reserved: int) -> Tensor:
    """``weight_Rd`` with new rows at its end, (rows, d), for the new values of a growing vocabulary.

    A new row starts as the mean of the OOV rows, which its value was looked up as so far.

    Raises:
        ValueError: ``rows`` is fewer than the table has: vocabularies only grow.
    """
    grown = rows - weight_Rd.shape[0]
    if grown < 0:
        raise ValueError(f"a table of {weight_Rd.shape[0]} rows cannot grow to {rows}")
    start_d = weight_Rd[1:reserved].mean(0) if reserved > 1 else weight_Rd[reserved:].mean(0)
    return torch.cat([weight_Rd, start_d.expand(grown, -1)])
