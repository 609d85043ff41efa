"""Embedding tables: which lookups a schema needs, the lookups themselves, and every way to reach their rows.

Letters: B rows of a batch, L ids of all bags of a feature, R rows of a table, d width of an embedding, F features.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, unquote

import torch
import xxhash
from fbgemm_gpu.split_embedding_configs import EmbOptimType as OptimType
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from data_pipelines.batch import Batch, Schema, SparseSpec, TableSpec
from data_pipelines.errors import UserError

Pooling = Literal["sum", "mean", "last", "attention", "convolution"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]
Route = Literal["pooled", "weighted", "rows"]
RowTransform = Callable[[Tensor, Tensor], Tensor]
"""From (L, d) rows of a table and their (L,) ids to the (L, d) rows that are pooled."""
OOV_ID = 1
"""The first OOV bucket: what ids of pruned rows become (see :meth:`SparseTables.set_keep`)."""

# TorchRec 1.8 on Torch 2.13 says these on every start; results are right (tests compare them with plain modules).
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function", category=UserWarning)
warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning)

_META = torch.device("meta")
_INIT_STD = 0.01
_INIT_BLOCK = 1 << 16
_WIDE = "wide "


class TableConfig(BaseModel):
    """What one table does otherwise than the rest: ``model.tables.<table>``.

    Attributes:
        rows: Keep only so many rows, for the ids in use: for a ``hash`` feature of very many ids (see
            :class:`models.managed_ids.ManagedRows`). A row for each id where absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dim: int | None = Field(default=None, ge=1)
    sharding: Sharding = "auto"
    rows: int | None = Field(default=None, ge=1)


class TablesConfig(BaseModel):
    """Embedding tables and the pooling of their bags: the first part of ``model``.

    Attributes:
        dim: Width of an embedding where ``tables`` does not say otherwise.
        tables: Exceptions by table name.
        pooling: By name of a feature, or of a history (then for all its columns). ``mean`` where absent. ``last``,
            ``attention`` and ``convolution`` are for histories.
        wide: Add the wide part: one number for each id, summed over all features (Wide & Deep, arXiv 1606.07792).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dim: int = Field(default=16, ge=1)
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
    """

    name: str
    vocabulary: str
    rows: int
    dim: int
    features: tuple[str, ...]
    route: Route
    pooling: Literal["sum", "mean"]

    @property
    def wide(self) -> bool:
        return self.name.startswith(_WIDE)

    @property
    def key(self) -> str:
        """The table's name inside TorchRec's collections and plans."""
        return _key(self.name)

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
            )
        )
    if config.wide:
        layouts += [
            TableLayout(_WIDE + t.name, t.vocabulary, t.rows, 1, t.features, t.route, t.pooling) for t in tuple(layouts)
        ]
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


@dataclass
class Embedded:
    """What the tables give for one batch, by feature name.

    Attributes:
        pooled: (B, d) float32, of every sparse feature that the tables pool (``sum``, ``mean`` and ids).
        sequences: ``(values (L, d), offsets (B + 1))`` of the features that are read as sequences.
        wide: (B, 1), of every sparse feature where the config asks for the wide part.
    """

    pooled: dict[str, Tensor]
    sequences: dict[str, tuple[Tensor, Tensor]]
    wide: dict[str, Tensor]


def pool_rows(values_Ld: Tensor, offsets: Tensor, pooling: Literal["sum", "mean"]) -> Tensor:
    """(B, d) sums or means of the slices that ``offsets`` (B + 1) cuts; an empty bag gives zeros."""
    sums_Bd = torch.segment_reduce(values_Ld, "sum", offsets=offsets.long(), axis=0, initial=0)
    return sums_Bd if pooling == "sum" else sums_Bd / offsets.diff().clamp(min=1).unsqueeze(1)


def mean_weights(bags: KeyedJaggedTensor, features: Sequence[str]) -> KeyedJaggedTensor:
    """``bags`` with the weights of ``features`` divided by their sum in each bag: a weighted sum becomes the mean."""
    if not features:
        return bags
    weights = bags.weights().clone()
    bounds = bags.offset_per_key()
    for index, key in enumerate(bags.keys()):
        if key in features:
            own = weights[bounds[index] : bounds[index + 1]]
            lengths = bags[key].lengths()
            totals = torch.segment_reduce(own, "sum", lengths=lengths.long(), initial=0)
            own /= totals.clamp(min=torch.finfo(own.dtype).tiny).repeat_interleave(lengths)
    return _with_values(bags, bags.values(), weights)


def _with_values(bags: KeyedJaggedTensor, values: Tensor, weights: Tensor | None) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=bags.keys(), values=values, weights=weights, lengths=bags.lengths(), offsets=bags.offsets()
    )


class SparseTables(nn.Module):
    """All embedding tables of a ranker, as TorchRec collections that ``DistributedModelParallel`` can shard.

    Bags that one table pools alike go through an ``EmbeddingBagCollection``, weighted ones through a second; tables of
    sequences, or whose features differ in pooling, each through an ``EmbeddingCollection``, and are pooled here.
    Results are always read by key: under sharding the columns of a collection's output come in the order of the shards.

    Args:
        row_transforms: By table name, what every row looked up in that table goes through before it is pooled. Such
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
        self.layouts = tuple(
            replace(layout, route="rows") if layout.name in self.row_transforms else layout
            for layout in table_layouts(schema, config)
        )
        self._specs = {feature.name: feature for feature in schema.sparse}
        self._pooling = {name: config.pooling_of(spec) for name, spec in self._specs.items()}
        self._kept: list[str] = []
        self.pooled = self._bags("pooled")
        self.weighted = self._bags("weighted")
        self.rows = nn.ModuleDict({t.key: self._rows(t) for t in self.layouts if t.route == "rows"})
        self._mean_weighted = [name for name, spec in self._specs.items() if spec.weighted and self._mean(name)]
        if device is None or device.type != "meta":
            self.to_empty(device=device or torch.device("cpu"))
            initialise_tables(self)

    def _mean(self, feature: str) -> bool:
        return self._pooling[feature] == "mean" and self._specs[feature].kind != "id"

    def _bags(self, route: Route) -> EmbeddingBagCollection | None:
        tables = [
            EmbeddingBagConfig(
                name=layout.key,
                num_embeddings=layout.rows,
                embedding_dim=layout.stored_dim,
                feature_names=list(layout.features),
                pooling=PoolingType.MEAN if layout.pooling == "mean" else PoolingType.SUM,
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
        return {name: getattr(self, f"keep_{_key(name)}") for name in self._kept}

    def set_keep(self, vocabulary: str, keep: Tensor) -> None:
        """Redirect the ids of rows that ``keep`` (R,) bool drops to the first OOV row, in every table of a vocabulary.

        The mask is a buffer, and so a part of the state dict from then on. Reserved rows cannot be dropped.
        """
        rows = next(layout.rows for layout in self.layouts if layout.vocabulary == vocabulary)
        if len(keep) != rows:
            raise UserError(
                f"model.tables.{vocabulary}.rows: ids of {vocabulary!r} have no rows of their own, so that none can be "
                "pruned; leave rows out, or leave this table out of the pruning."
            )
        keep = keep.clone()
        keep[: OOV_ID + 1] = True
        if vocabulary not in self._kept:
            self._kept.append(vocabulary)
        self.register_buffer(f"keep_{_key(vocabulary)}", keep)

    def _redirect(self, bags: KeyedJaggedTensor) -> KeyedJaggedTensor:
        if not self._kept:
            return bags
        masks = {name: self.keep[spec.table] for name, spec in self._specs.items() if spec.table in self._kept}
        return with_ids(bags, {name: partial(_oov_where_dropped, keep) for name, keep in masks.items()})

    @torch.no_grad()
    def restart_rows(self, vocabulary: str, rows: Tensor, step: int) -> None:
        """Give ``rows`` of every table of a vocabulary new start values, equal on all ranks: they have new owners."""
        layouts = {layout.name: layout for layout in self.layouts if layout.vocabulary == vocabulary}
        for shard in local_rows(self) if len(rows) else ():
            if shard.table in layouts:
                values = _start_values(layouts[shard.table], len(rows), f"restart/{step}/{shard.table}")
                inside = (rows >= shard.row_offset) & (rows < shard.row_offset + len(shard.weight))
                columns = slice(shard.col_offset, shard.col_offset + shard.weight.shape[1])
                shard.weight[rows[inside] - shard.row_offset] = values[inside, columns].to(shard.weight)

    def forward(self, batch: Batch) -> Embedded:
        """Look up every feature of the schema; other keys of the batch are left alone."""
        bags = self._redirect(batch.sparse)
        weighted = None
        if batch.weighted is not None and self._has_weighted:
            weighted = mean_weights(self._redirect(batch.weighted), self._mean_weighted)
        by_name: dict[str, Tensor] = {}
        if self.pooled is not None:
            by_name |= _by_key(self.pooled(bags))
        if self.weighted is not None:
            by_name |= _by_key(self.weighted(weighted))
        embedded = Embedded({}, {}, {})
        if self.rows:
            self._pool_rows(bags, weighted, embedded)
        for layout in self.layouts:
            if layout.route != "rows":
                target = embedded.wide if layout.wide else embedded.pooled
                for feature in layout.features:
                    value = by_name[self._output_name(feature, layout)]
                    target[feature] = value if layout.dim == layout.stored_dim else value[:, : layout.dim]
        return embedded

    @property
    def _has_weighted(self) -> bool:
        return any(spec.weighted for spec in self._specs.values())

    def _output_name(self, feature: str, layout: TableLayout) -> str:
        """TorchRec's name of a feature's embedding: with the table's name where the feature has several tables."""
        several = sum(feature in other.features and other.route == layout.route for other in self.layouts) > 1
        return f"{feature}@{layout.key}" if several else feature

    def _pool_rows(self, bags: KeyedJaggedTensor, weighted: KeyedJaggedTensor | None, embedded: Embedded) -> None:
        merged = bags if weighted is None else _merge(bags, weighted)
        looked_up = {key: collection(merged) for key, collection in self.rows.items()}
        for layout in self.layouts:
            if layout.route != "rows":
                continue
            for feature in layout.features:
                jagged = looked_up[layout.key][feature]
                values_Ld, offsets = jagged.values()[:, : layout.dim], jagged.offsets()
                if layout.name in self.row_transforms:
                    values_Ld = self.row_transforms[layout.name](values_Ld, merged[feature].values())
                spec, pooling = self._specs[feature], self._pooling[feature]
                if spec.weighted:
                    assert weighted is not None
                    values_Ld = values_Ld * weighted[feature].weights().unsqueeze(1)
                target = embedded.wide if layout.wide else embedded.pooled
                if spec.kind == "id":
                    target[feature] = values_Ld
                elif spec.weighted or pooling == "sum":
                    target[feature] = pool_rows(values_Ld, offsets, "sum")
                elif pooling == "mean" or layout.wide:
                    target[feature] = pool_rows(values_Ld, offsets, "mean")
                else:
                    embedded.sequences[feature] = (values_Ld, offsets)


def _oov_where_dropped(keep: Tensor, ids_L: Tensor) -> Tensor:
    return ids_L.masked_fill(~keep[ids_L.long()], OOV_ID)


def with_ids(bags: KeyedJaggedTensor, change: Mapping[str, Callable[[Tensor], Tensor]]) -> KeyedJaggedTensor:
    """``bags`` with the ids of some keys exchanged, one for one."""
    values = bags.values().clone()
    bounds = bags.offset_per_key()
    for index, key in enumerate(bags.keys()):
        if key in change:
            own = slice(bounds[index], bounds[index + 1])
            values[own] = change[key](values[own])
    return _with_values(bags, values, bags.weights_or_none())


def _by_key(output: Any) -> dict[str, Tensor]:
    """Embeddings by key; ``torch.split`` keeps the backward pass one concatenation."""
    return dict(zip(output.keys(), output.values().split(output.length_per_key(), dim=1), strict=True))


def _merge(bags: KeyedJaggedTensor, weighted: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=[*bags.keys(), *weighted.keys()],
        values=torch.cat([bags.values(), weighted.values().to(bags.values().dtype)]),
        lengths=torch.cat([bags.lengths(), weighted.lengths()]),
    )


def _key(name: str) -> str:
    """A table's name as TorchRec can take it: module names admit no dot and not every word (``items``, ``type``)."""
    return "table:" + quote(name, safe=" ").replace(".", "%2E")


def _name(key: str) -> str:
    return unquote(key.removeprefix("table:"))


@dataclass(frozen=True)
class TableShard:
    """The part of a table that this process holds: ``weight`` is a writable view of rows and columns from an offset.

    ``squares`` is what a fused Adagrad has summed up of squared gradients, by row (r,) or by number (r, c); ``None``
    under any other optimizer.
    """

    table: str
    row_offset: int
    col_offset: int
    weight: Tensor
    squares: Tensor | None = None


def local_rows(module: nn.Module) -> Iterator[TableShard]:
    """Every shard that this process holds of the tables in ``module``, whatever its kernel and sharding.

    Columns that only pad a table for FBGEMM are left out.
    """
    dims = {t.name: t.dim for m in module.modules() if isinstance(m, SparseTables) for t in m.layouts}
    for key, row_offset, col_offset, weight, squares in _stored_shards(module):
        name = _name(key)
        columns = max(0, dims[name] - col_offset)
        if squares is not None and squares.dim() == 2:
            squares = squares[:, :columns]
        yield TableShard(name, row_offset, col_offset, weight[:, :columns], squares)


def _stored_shards(module: nn.Module) -> Iterator[tuple[str, int, int, Tensor, Tensor | None]]:
    for child in module.modules():
        if isinstance(child, EmbeddingBagCollection | EmbeddingCollection):
            plain = child.embedding_bags if isinstance(child, EmbeddingBagCollection) else child.embeddings
            for key, table in plain.items():
                yield key, 0, 0, table.weight.detach(), None
        elif isinstance(child, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            for lookup in child._lookups:
                grouped = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
                for kernel in grouped._emb_modules:
                    tables, weights = kernel.config.embedding_tables, kernel.split_embedding_weights()
                    for table, weight, squares in zip(tables, weights, _squares(kernel, len(tables)), strict=True):
                        offsets = table.local_metadata.shard_offsets if table.local_metadata else (0, 0)
                        yield table.name, offsets[0], offsets[1], weight.detach(), squares


def _squares(kernel: Any, tables: int) -> list[Tensor | None]:
    """Adagrad's sums of squared gradients of a kernel's tables, where it has a fused Adagrad."""
    if getattr(kernel.emb_module, "optimizer", None) not in (OptimType.EXACT_ADAGRAD, OptimType.EXACT_ROWWISE_ADAGRAD):
        return [None] * tables
    return [states[0] for states in kernel.emb_module.split_optimizer_states()]


@torch.no_grad()
def initialise_tables(module: nn.Module, seed: int = 0) -> None:
    """Fill the tables in ``module`` with small normal numbers that depend on seed, table, row and column alone.

    So a table starts the same whatever the number of processes and the sharding, and the global random state is left
    as it was.
    """
    layouts = {t.name: t for m in module.modules() if isinstance(m, SparseTables) for t in m.layouts}
    for key, row_offset, col_offset, weight, _ in _stored_shards(module):
        layout = layouts[_name(key)]
        end = row_offset + weight.shape[0]
        for block in range(row_offset // _INIT_BLOCK, -(-end // _INIT_BLOCK)):
            rows = min(_INIT_BLOCK, layout.rows - block * _INIT_BLOCK)
            values = _start_values(layout, rows, f"{seed}/{layout.name}/{block}")
            first, last = max(row_offset, block * _INIT_BLOCK), min(end, block * _INIT_BLOCK + rows)
            taken = values[first - block * _INIT_BLOCK : last - block * _INIT_BLOCK]
            weight[first - row_offset : last - row_offset] = taken[:, col_offset : col_offset + weight.shape[1]]


def _start_values(layout: TableLayout, rows: int, name: str) -> Tensor:
    """(rows, stored columns) numbers that depend on ``name`` alone; a wide part starts from zero."""
    values = torch.zeros(rows, layout.stored_dim)
    if not layout.wide:
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(name.encode()) >> 1)
        values[:, : layout.dim] = torch.randn(rows, layout.dim, generator=generator) * _INIT_STD
    return values


def table_names(state: Iterable[str]) -> dict[str, str]:
    """Table name by key of a ranker's ``state_dict``, for the keys that are embedding tables."""
    names = {}
    for key in state:
        parts = key.split(".")
        if parts[-1] == "weight" and len(parts) >= 3 and parts[-3] in ("embedding_bags", "embeddings"):
            names[key] = _name(parts[-2])
    return names


def table_weights(state: Mapping[str, Tensor], schema: Schema, config: TablesConfig) -> dict[str, Tensor]:
    """(R, d) by table name, from a whole (unsharded) ``state_dict`` of a ranker; padding columns are cut off."""
    dims = {layout.name: layout.dim for layout in table_layouts(schema, config)}
    return {table: state[key][:, : dims[table]] for key, table in table_names(state).items()}


def keep_masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(R,) bool by vocabulary: the masks of :meth:`SparseTables.set_keep` in a ranker's ``state_dict``."""
    prefix = "tables.keep_"
    return {_name(key.removeprefix(prefix)): mask for key, mask in state.items() if key.startswith(prefix)}


def grow_table(weight_Rd: Tensor, rows: int, *, reserved: int) -> Tensor:
    """``weight_Rd`` with new rows at its end, (rows, d): where a growing vocabulary's new values start.

    A new row starts as the mean of the OOV rows, where values outside the vocabulary were looked up so far.

    Raises:
        ValueError: ``rows`` is fewer than the table has: vocabularies only grow.
    """
    grown = rows - weight_Rd.shape[0]
    if grown < 0:
        raise ValueError(f"a table of {weight_Rd.shape[0]} rows cannot grow to {rows}")
    start_d = weight_Rd[1:reserved].mean(0) if reserved > 1 else weight_Rd[reserved:].mean(0)
    return torch.cat([weight_Rd, start_d.expand(grown, -1)])
