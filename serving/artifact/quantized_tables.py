"""Embedding lookups directly on the bytes of an artifact: FBGEMM's n-bit kernel over memory-mapped rows.

Rows have the layout of :func:`models.codecs.quantization.quantize_rows`. Several processes that score with one
artifact share its pages, and a row that is never looked up is never read from the disk.

Letters: B rows of a batch, L ids of all bags of a feature, d stored width of a table, D its width in the ranker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from torch import Tensor, nn

from data_pipelines.batch import Batch, Schema
from models.codecs.quantization import padded_dim
from models.tables.config import TablesConfig
from models.tables.id_changes import IdChanges
from models.tables.lookup import Embedded
from models.tables.plan import Lookup, lookup_plan

_SPARSE_TYPE = {
    32: SparseType.FP32,
    16: SparseType.FP16,
    8: SparseType.INT8,
    4: SparseType.INT4,
    2: SparseType.INT2,
}


@dataclass(frozen=True)
class MappedTable:
    """The place of a table in the mapped file: ``rows`` rows of ``dim`` numbers of ``bits`` bits from ``offset``."""

    rows: int
    dim: int
    bits: int
    offset: int


@dataclass(frozen=True)
class _Call:
    """One call of the kernel: lookups of neighbouring keys of a batch's KJT with the same pooling."""

    lookups: tuple[Lookup, ...]
    start: int
    weights_offsets: Tensor
    weights_types: Tensor
    placements: Tensor
    column_offsets: Tensor
    columns: tuple[slice, ...]
    widest: tuple[int, ...]


class QuantizedTables(nn.Module):
    """The tables of an artifact as a ranker's ``tables``, with the same interface as in training.

    The keys of a batch must be the sparse features of ``schema`` in its order.

    Args:
        storage: The bytes of the mapped file, (bytes,) uint8.
        tables: Place and shape of every table in ``storage``.
        factors: (d, D) float32 by name of a table that is stored with fewer columns than the ranker reads.
    """

    def __init__(
        self,
        schema: Schema,
        config: TablesConfig,
        storage: Tensor,
        tables: Mapping[str, MappedTable],
        factors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self._storage = storage
        self._factors = dict(factors)
        self.lookup_plan = lookup_plan(schema, config)
        self._calls = _calls(self.lookup_plan.lookups, tables)

    def forward(self, batch: Batch | IdChanges) -> Embedded:
        embedded = Embedded({}, {}, {})
        batch = IdChanges.of(batch).batch(self.lookup_plan.mean_weighted)
        for call in self._calls:
            first = call.lookups[0]
            kjt = batch.weighted if first.weighted else batch.sparse
            assert kjt is not None
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
            dev_weights=self._storage,
            uvm_weights=self._storage,
            weights_placements=call.placements,
            weights_offsets=call.weights_offsets,
            weights_tys=call.weights_types,
            D_offsets=call.column_offsets,
            total_D=int(call.column_offsets[-1]),
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
            lxu_cache_weights=None,
            lxu_cache_locations=None,
            row_alignment=1,
        )
        return out

    def _widen(self, lookup: Lookup, values: Tensor) -> Tensor:
        factor = self._factors.get(lookup.table)
        return values if factor is None else values @ factor


def _calls(every: Sequence[Lookup], tables: Mapping[str, MappedTable]) -> list[_Call]:
    """Group the lookups, in the order of the batch's keys, into as few calls as possible."""
    calls: list[_Call] = []
    for wide in (False, True):
        for weighted in (False, True):
            group = [lookup for lookup in every if lookup.wide is wide and lookup.weighted is weighted]
            start = 0
            for end in range(1, len(group) + 1):
                pooling = group[start].pooling
                if end == len(group) or pooling is PoolingMode.NONE or group[end].pooling != pooling:
                    calls.append(_call(tuple(group[start:end]), start, tables))
                    start = end
    return calls


def _call(group: tuple[Lookup, ...], start: int, tables: Mapping[str, MappedTable]) -> _Call:
    mapped = [tables[lookup.table] for lookup in group]
    padded = [padded_dim(table.dim, table.bits) for table in mapped]
    column_offsets = torch.tensor([0, *padded]).cumsum(0).to(torch.int32)
    return _Call(
        lookups=group,
        start=start,
        weights_offsets=torch.tensor([table.offset for table in mapped], dtype=torch.int64),
        weights_types=torch.tensor([_SPARSE_TYPE[table.bits].as_int() for table in mapped], dtype=torch.uint8),
        placements=torch.full((len(group),), EmbeddingLocation.HOST.value, dtype=torch.int32),
        column_offsets=column_offsets,
        columns=tuple(
            slice(begin, begin + table.dim) for begin, table in zip(column_offsets.tolist(), mapped, strict=False)
        ),
        widest=tuple(
            max((dim for table, dim in zip(mapped, padded, strict=True) if table.bits == bits), default=0)
            for bits in (2, 4, 8, 16, 32)
        ),
    )
