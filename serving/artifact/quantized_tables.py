"""Embedding lookups directly on the bytes of an artifact: FBGEMM's n-bit kernel over memory-mapped rows.

Rows have the layout of :func:`models.codecs.quantization.quantize_rows`. Several processes that score with one
artifact share its pages, and a row that is never looked up is never read from the disk. A GPU reads a copy in its own
memory, with the same bits per number.

Letters: B rows of a batch, L ids of all bags of a feature, d stored width of a table, D its width in the ranker,
R rows of a table, W bytes of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from torch import Tensor, nn

from data_pipelines.batch import Batch, Schema
from models.codecs.quantization import padded_dim, row_bytes
from models.tables.config import TablesConfig
from models.tables.id_changes import IdChanges
from models.tables.lookup import Embedded
from models.tables.plan import Lookup, lookup_plan

_GPU_ROW, _GPU_TABLE = 16, 128
"""Bytes of which rows and tables begin at multiples in a GPU's memory, as FBGEMM asks for."""

_GPU_COLUMNS = 4
"""Columns that a GPU's kernel writes at a time; rows that are 16 bytes apart always have so many."""

_CHUNK = 1 << 20
"""Rows that are copied to a GPU at a time."""

_SPARSE_TYPE = {
    32: SparseType.FP32,
    16: SparseType.FP16,
    8: SparseType.INT8,
    4: SparseType.INT4,
    2: SparseType.INT2,
}


@dataclass(frozen=True)
class MappedTable:
    """The place of a table in its storage: ``rows`` rows of ``dim`` numbers of ``bits`` bits from ``offset``."""

    rows: int
    dim: int
    bits: int
    offset: int

    def row_bytes(self, alignment: int) -> int:
        """Bytes from one row to the next, if each begins at a multiple of ``alignment``."""
        return _rounded_up(row_bytes(self.dim, self.bits), alignment)


@dataclass(frozen=True)
class TableStorage:
    """The bytes of tables.

    Attributes:
        content: (bytes,) uint8: a mapped file, or memory of this machine or of a GPU.
        tables: Place and shape of every table in ``content``.
        alignment: Bytes of which the distance of two rows is a multiple.
    """

    content: Tensor
    tables: Mapping[str, MappedTable]
    alignment: int = 1

    def rows_of(self, name: str) -> Tensor:
        """(R, W) the bytes of a table's rows, a view of ``content``."""
        table = self.tables[name]
        width = table.row_bytes(self.alignment)
        return self.content[table.offset : table.offset + table.rows * width].view(table.rows, width)

    @property
    def aligned_bytes(self) -> int:
        """Bytes that :meth:`aligned` takes."""
        sizes = (table.rows * table.row_bytes(_GPU_ROW) for table in self.tables.values())
        return sum(_rounded_up(size, _GPU_TABLE) for size in sizes)

    def aligned(self, device: torch.device) -> "TableStorage":
        """A copy on ``device`` with rows as a GPU reads them: 16 bytes at a time."""
        content = torch.zeros(self.aligned_bytes, dtype=torch.uint8, device=device)
        tables, start = {}, 0
        for name, table in self.tables.items():
            tables[name] = replace(table, offset=start)
            start += _rounded_up(table.rows * table.row_bytes(_GPU_ROW), _GPU_TABLE)
        copy = TableStorage(content, tables, _GPU_ROW)
        for name, table in tables.items():
            source_RW, target_RW = self.rows_of(name), copy.rows_of(name)
            for rows in range(0, table.rows, _CHUNK):
                part_RW = source_RW[rows : rows + _CHUNK]
                target_RW[rows : rows + _CHUNK, : part_RW.shape[1]].copy_(part_RW.to(device))
        return copy


def _rounded_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True)
class _Call:
    """One call of the kernel: lookups of neighbouring keys of a batch's KJT with the same pooling."""

    lookups: tuple[Lookup, ...]
    start: int
    weights_offsets: Tensor
    weights_types: Tensor
    placements: Tensor
    column_offsets: Tensor
    width: int
    columns: tuple[slice, ...]
    widest: tuple[int, ...]


class QuantizedTables(nn.Module):
    """The tables of an artifact as a ranker's ``tables``, with the same interface as in training.

    The keys of a batch must be the sparse features of ``schema`` in its order.

    Args:
        storage: The rows; lookups run on its device.
        factors: (d, D) float32 by name of a table that is stored with fewer columns than the ranker reads.
    """

    def __init__(
        self,
        schema: Schema,
        config: TablesConfig,
        storage: TableStorage,
        factors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        device = storage.content.device
        self._storage = storage
        self._factors = {name: factor.to(device) for name, factor in factors.items()}
        self._no_cache = torch.empty(0, 0, dtype=torch.uint8, device=device)
        self._no_locations = torch.empty(0, dtype=torch.int32, device=device)
        self.lookup_plan = lookup_plan(schema, config)
        self._calls = _calls(self.lookup_plan.lookups, storage)

    def forward(self, batch: Batch | IdChanges) -> Embedded:
        embedded = Embedded({}, {}, {})
        batch = IdChanges.of(batch).batch(self.lookup_plan.mean_weighted)
        for call in self._calls:
            first = call.lookups[0]
            kjt = batch.keyed(weighted=first.weighted)
            assert kjt.keys()[call.start] == first.feature
            offsets = kjt.offsets()[call.start * len(batch) : (call.start + len(call.lookups)) * len(batch) + 1]
            if first.pooling is PoolingMode.NONE:
                bounds = kjt.offset_per_key()[call.start : call.start + 2]
                offsets = offsets - bounds[0]
                rows_Ld = self._look_up(call, kjt.values()[slice(*bounds)], offsets, None)[:, call.columns[0]]
                embedded.sequences[first.feature] = (self._widen(first, rows_Ld), offsets)
                continue
            values = self._look_up(call, kjt.values(), offsets, kjt.weights() if first.weighted else None)
            for lookup, columns in zip(call.lookups, call.columns, strict=True):
                target = embedded.wide if lookup.wide else embedded.pooled
                target[lookup.feature] = self._widen(lookup, values[:, columns])
        return embedded

    def _look_up(self, call: _Call, ids: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        out: Tensor = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            dev_weights=self._storage.content,
            uvm_weights=self._storage.content,
            weights_placements=call.placements,
            weights_offsets=call.weights_offsets,
            weights_tys=call.weights_types,
            D_offsets=call.column_offsets,
            total_D=call.width,
            max_int2_D=call.widest[0],
            max_int4_D=call.widest[1],
            max_int8_D=call.widest[2],
            max_float16_D=call.widest[3],
            max_float32_D=call.widest[4],
            indices=ids,
            offsets=offsets.to(ids.dtype),
            pooling_mode=call.lookups[0].pooling.value,
            indice_weights=weights,
            output_dtype=SparseType.FP32.as_int(),
            lxu_cache_weights=self._no_cache,
            lxu_cache_locations=self._no_locations,
            row_alignment=self._storage.alignment,
        )
        return out

    def _widen(self, lookup: Lookup, values: Tensor) -> Tensor:
        factor = self._factors.get(lookup.table)
        return values if factor is None else values @ factor


def _calls(every: Sequence[Lookup], storage: TableStorage) -> list[_Call]:
    """Group the lookups, in the order of the batch's keys, into as few calls as possible."""
    calls: list[_Call] = []
    for wide in (False, True):
        for weighted in (False, True):
            group = [lookup for lookup in every if lookup.wide is wide and lookup.weighted is weighted]
            start = 0
            for end in range(1, len(group) + 1):
                pooling = group[start].pooling
                if end == len(group) or pooling is PoolingMode.NONE or group[end].pooling != pooling:
                    calls.append(_call(tuple(group[start:end]), start, storage))
                    start = end
    return calls


def _call(group: tuple[Lookup, ...], start: int, storage: TableStorage) -> _Call:
    mapped, device = [storage.tables[lookup.table] for lookup in group], storage.content.device
    place = EmbeddingLocation.HOST if device.type == "cpu" else EmbeddingLocation.DEVICE
    unit = 1 if storage.alignment < _GPU_ROW else _GPU_COLUMNS
    padded = [_rounded_up(padded_dim(table.dim, table.bits), unit) for table in mapped]
    column_offsets = [0, *accumulate(padded)]
    return _Call(
        lookups=group,
        start=start,
        weights_offsets=torch.tensor([table.offset for table in mapped], dtype=torch.int64, device=device),
        weights_types=torch.tensor(
            [_SPARSE_TYPE[table.bits].as_int() for table in mapped], dtype=torch.uint8, device=device
        ),
        placements=torch.full((len(group),), place.value, dtype=torch.int32, device=device),
        column_offsets=torch.tensor(column_offsets, dtype=torch.int32, device=device),
        width=column_offsets[-1],
        columns=tuple(slice(begin, begin + table.dim) for begin, table in zip(column_offsets, mapped, strict=False)),
        widest=tuple(
            max((dim for table, dim in zip(mapped, padded, strict=True) if table.bits == bits), default=0)
            for bits in (2, 4, 8, 16, 32)
        ),
    )
