"""The lookups of embedding tables, which turn bags into pooled embeddings and sequences.

Letters: B rows of a batch, L ids of all bags of a feature, R rows of a table, d width of an embedding, F features.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)

from data_pipelines.batch import Batch, Schema
from data_pipelines.errors import UserError
from models.tables.config import TablesConfig
from models.tables.id_changes import IdChange, IdChanges, redirected
from models.tables.plan import OOV_ID, Lookup, Route, TableLayout, lookup_plan, table_key
from models.tables.rows import initialise_tables, local_rows, start_values

_META = torch.device("meta")

RowTransform = Callable[[Tensor, Tensor], Tensor]
"""Maps (L, d) rows of a table and their (L,) ids to the (L, d) rows that are pooled."""


@dataclass
class Embedded:
    """The results of all lookups for one batch, by feature name.

    Attributes:
        pooled: (B, d) float32, of every sparse feature that the tables pool (``sum``, ``mean`` and ids).
        sequences: ``(values (L, d), offsets (B + 1))`` of the features that are read as sequences.
        wide: (B, 1), of every sparse feature where the config asks for the wide part.
    """

    pooled: dict[str, Tensor]
    sequences: dict[str, tuple[Tensor, Tensor]]
    wide: dict[str, Tensor]

    def add(self, lookup: Lookup, values_Ld: Tensor, offsets: Tensor) -> None:
        """Pool the rows of one lookup, with weights, and store the result."""
        if lookup.pooling is PoolingMode.NONE:
            self.sequences[lookup.feature] = (values_Ld, offsets)
            return
        pooled_Bd = values_Ld if lookup.single else pool_rows(values_Ld, offsets, lookup.pooling)
        (self.wide if lookup.wide else self.pooled)[lookup.feature] = pooled_Bd


def pool_rows(values_Ld: Tensor, offsets: Tensor, pooling: PoolingMode) -> Tensor:
    """(B, d) sums or means of the bags that start at ``offsets`` (B + 1); an empty bag gives zeros."""
    sums_Bd = torch.segment_reduce(values_Ld, "sum", offsets=offsets.long(), axis=0, initial=0)
    return sums_Bd if pooling is PoolingMode.SUM else sums_Bd / offsets.diff().clamp(min=1).unsqueeze(1)


class SparseTables(nn.Module):
    """All embedding tables of a ranker, as TorchRec collections that ``DistributedModelParallel`` can shard.

    Tables whose bags are all pooled in the same way are in an ``EmbeddingBagCollection``, weighted ones in a second.
    Tables of sequences, or whose features differ in pooling, are each in an ``EmbeddingCollection``, and pooled here.
    Results are always read by key: under sharding the columns of a collection's output come in the order of the shards.

    Args:
        row_transforms: By table name, functions that are applied to every looked-up row before it is pooled. Such
            tables are looked up row by row.
    """

    def __init__(
        self,
        schema: Schema,
        config: TablesConfig,
        *,
        device: torch.device | None = None,
        row_transforms: Mapping[str, RowTransform] | None = None,
    ) -> None:
        super().__init__()
        self.row_transforms = dict(row_transforms or {})
        self.lookup_plan = lookup_plan(schema, config).by_rows(self.row_transforms)
        self._kept: list[str] = []
        self.pooled = self._bags("pooled")
        self.weighted = self._bags("weighted")
        self.rows = nn.ModuleDict({t.key: self._rows(t) for t in self.layouts if t.route == "rows"})
        if device is None or device.type != "meta":
            self.to_empty(device=device or torch.device("cpu"))
            initialise_tables(self)

    @property
    def layouts(self) -> tuple[TableLayout, ...]:
        """The tables of the plan."""
        return self.lookup_plan.tables

    def _bags(self, route: Route) -> EmbeddingBagCollection | None:
        tables = [
            EmbeddingBagConfig(
                name=layout.key,
                num_embeddings=layout.rows,
                embedding_dim=layout.stored_dim,
                feature_names=list(layout.features),
                pooling=PoolingType.MEAN if layout.pooling is PoolingMode.MEAN else PoolingType.SUM,
            )
            for layout in self.layouts
            if layout.route == route
        ]
        return EmbeddingBagCollection(tables, is_weighted=route == "weighted", device=_META) if tables else None

    def _rows(self, layout: TableLayout) -> EmbeddingCollection:
        config = EmbeddingConfig(
            name=layout.key,
            num_embeddings=layout.rows,
            embedding_dim=layout.stored_dim,
            feature_names=list(layout.features),
        )
        return EmbeddingCollection([config], device=_META)

    @property
    def keep(self) -> dict[str, Tensor]:
        """(R,) bool by vocabulary, of those that are pruned: ids of rows that are False are looked up as OOV."""
        return {name: getattr(self, f"keep_{table_key(name)}") for name in self._kept}

    def set_keep(self, vocabulary: str, keep: Tensor) -> None:
        """Redirect the ids of rows that ``keep`` (R,) bool drops to the first OOV row, in every table of a vocabulary.

        The mask is a buffer, and therefore part of the state dict. Reserved rows cannot be dropped.
        """
        rows = next(layout.rows for layout in self.layouts if layout.vocabulary == vocabulary)
        if len(keep) != rows:
            raise UserError(
                f"model.tables.{vocabulary}.rows: ids of {vocabulary!r} share rows over time, so none can be "
                "pruned: remove the key rows, or leave this table out of the pruning."
            )
        keep = keep.clone()
        keep[: OOV_ID + 1] = True
        if vocabulary not in self._kept:
            self._kept.append(vocabulary)
        self.register_buffer(f"keep_{table_key(vocabulary)}", keep)

    def _redirects(self) -> dict[str, IdChange]:
        if not self._kept:
            return {}
        changes = {name: redirected(keep_R, OOV_ID) for name, keep_R in self.keep.items()}
        return {t.feature: changes[t.vocabulary] for t in self.lookup_plan.lookups if t.vocabulary in changes}

    @torch.no_grad()
    def restart_rows(self, vocabulary: str, rows: Tensor, step: int) -> None:
        """Give the reassigned ``rows`` of every table of a vocabulary new start values, equal on all ranks."""
        layouts = {layout.name: layout for layout in self.layouts if layout.vocabulary == vocabulary}
        for shard in local_rows(self) if len(rows) else ():
            if shard.table in layouts:
                name, device = f"restart/{step}/{shard.table}", shard.weight.device
                rows = rows.to(device)
                values = start_values(layouts[shard.table], len(rows), name, device)
                inside = (rows >= shard.row_offset) & (rows < shard.row_offset + len(shard.weight))
                columns = slice(shard.col_offset, shard.col_offset + shard.weight.shape[1])
                shard.weight[rows[inside] - shard.row_offset] = values[inside, columns].to(shard.weight)

    def forward(self, batch: Batch | IdChanges) -> Embedded:
        """Look up every feature of the schema; other keys of the batch are ignored."""
        batch = IdChanges.of(batch).change(self._redirects()).batch(self.lookup_plan.mean_weighted)
        bags, weighted = batch.sparse, batch.weighted if self._has_weighted else None
        by_name: dict[str, Tensor] = {}
        if self.pooled is not None:
            by_name |= _columns_by_key(self.pooled(bags))
        if self.weighted is not None:
            by_name |= _columns_by_key(self.weighted(weighted))
        embedded = Embedded({}, {}, {})
        if self.rows:
            self._pool_rows(bags, weighted, embedded)
        for layout, feature, name in self._outputs:
            value = by_name[name]
            target = embedded.wide if layout.wide else embedded.pooled
            target[feature] = value if layout.dim == layout.stored_dim else value[:, : layout.dim]
        return embedded

    @property
    def _has_weighted(self) -> bool:
        return any(lookup.weighted for lookup in self.lookup_plan.lookups)

    @cached_property
    def _outputs(self) -> list[tuple[TableLayout, str, str]]:
        """Each pooled lookup, as table and feature, and TorchRec's name of it.

        The name is the feature's, with the table's where the feature has several tables.
        """
        pooled = [(layout, feature) for layout in self.layouts if layout.route != "rows" for feature in layout.features]
        times = Counter((feature, layout.route) for layout, feature in pooled)
        return [
            (layout, feature, feature if times[feature, layout.route] == 1 else f"{feature}@{layout.key}")
            for layout, feature in pooled
        ]

    def _pool_rows(self, bags: KeyedJaggedTensor, weighted: KeyedJaggedTensor | None, embedded: Embedded) -> None:
        merged = bags if weighted is None else _merge(bags, weighted)
        looked_up = {key: collection(merged) for key, collection in self.rows.items()}
        for layout in self.layouts:
            if layout.route != "rows":
                continue
            for lookup in layout.lookups:
                jagged = looked_up[layout.key][lookup.feature]
                values_Ld, offsets = jagged.values()[:, : layout.dim], jagged.offsets()
                if layout.name in self.row_transforms:
                    values_Ld = self.row_transforms[layout.name](values_Ld, merged[lookup.feature].values())
                if lookup.weighted:
                    assert weighted is not None
                    values_Ld = values_Ld * weighted[lookup.feature].weights().unsqueeze(1)
                embedded.add(lookup, values_Ld, offsets)


def _columns_by_key(output: Any) -> dict[str, Tensor]:
    """Embeddings by key; ``torch.split`` keeps the backward pass one concatenation."""
    return dict(zip(output.keys(), output.values().split(output.length_per_key(), dim=1), strict=True))


def _merge(bags: KeyedJaggedTensor, weighted: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=[*bags.keys(), *weighted.keys()],
        values=torch.cat([bags.values(), weighted.values().to(bags.values().dtype)]),
        lengths=torch.cat([bags.lengths(), weighted.lengths()]),
        length_per_key=[*bags.length_per_key(), *weighted.length_per_key()],
    )
