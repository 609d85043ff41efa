"""Embedding tables as ordinary float32 parameters: no sharding, no fused optimizer; and the list of lookups to do.

Letters: B rows of a batch, L ids of all bags of a feature, d stored width of a table, D its width in the ranker.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch, Schema
from models.tables.layout import OOV_ID, TablesConfig, table_layouts
from models.tables.lookup import Embedded, mean_weights


@dataclass(frozen=True)
class Lookup:
    """One feature looked up in one table.

    Attributes:
        table: Name of the table, ``vocabulary`` the schema's table whose ids it holds.
        pooling: ``None`` where the ranker reads the rows as a sequence. For bags of one id, where sum and mean are the
            same, whichever more of the other bags have: neighbours that pool alike can share a call.
        weighted: The bags have weights of their own, which for a weighted mean are divided by their sum beforehand.
        wide: The result belongs to the wide part.
    """

    feature: str
    table: str
    vocabulary: str
    pooling: Literal["sum", "mean"] | None
    weighted: bool
    wide: bool


def lookups(schema: Schema, config: TablesConfig) -> tuple[Lookup, ...]:
    """All lookups that a ranker of ``config`` does for one batch: deep before wide, each in the order of the schema."""
    found = []
    by_feature = {
        (feature, layout.wide): layout for layout in table_layouts(schema, config) for feature in layout.features
    }
    bags = [config.pooling_of(spec) for spec in schema.sparse if spec.kind != "id" and not spec.weighted]
    of_one: Literal["sum", "mean"] = "sum" if bags.count("sum") > bags.count("mean") else "mean"
    for wide in (False, True) if config.wide else (False,):
        for spec in schema.sparse:
            layout = by_feature[spec.name, wide]
            asked = config.pooling_of(spec)
            pooling: Literal["sum", "mean"] | None = None
            if spec.weighted or (spec.kind != "id" and asked == "sum"):
                pooling = "sum"
            elif spec.kind == "id":
                pooling = of_one
            elif asked == "mean" or wide:
                pooling = "mean"
            found.append(Lookup(spec.name, layout.name, layout.vocabulary, pooling, spec.weighted, wide))
    return tuple(found)


def weighted_means(schema: Schema, config: TablesConfig) -> tuple[str, ...]:
    """The features whose bags' weights must sum to one before they are looked up."""
    return tuple(s.name for s in schema.sparse if s.weighted and s.kind != "id" and config.pooling_of(s) == "mean")


class PlainTables(nn.Module):
    """A ranker's ``tables`` over plain parameters: the reference of every faster kind.

    Args:
        tables: (R, d) float32 by table name; copied.
        keep: (R,) bool by vocabulary: ids of rows that are False are looked up as OOV.
        factors: (d, D) float32 by name of a table that is stored narrower than the ranker sees it.
    """

    def __init__(
        self,
        schema: Schema,
        config: TablesConfig,
        tables: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
        factors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self._lookups = lookups(schema, config)
        self._mean_weighted = weighted_means(schema, config)
        self._names = {name: index for index, name in enumerate(tables)}
        self._rows = nn.ParameterList([nn.Parameter(table.clone()) for table in tables.values()])
        self._keep, self._factors = dict(keep), dict(factors)

    @property
    def tables(self) -> dict[str, Tensor]:
        """The parameters by table name."""
        return {name: self._rows[index] for name, index in self._names.items()}

    def forward(self, batch: Batch) -> Embedded:
        embedded = Embedded({}, {}, {})
        weighted = None if batch.weighted is None else mean_weights(batch.weighted, self._mean_weighted)
        for lookup in self._lookups:
            kjt = weighted if lookup.weighted else batch.sparse
            assert kjt is not None
            bags = kjt[lookup.feature]
            ids, offsets = bags.values().long(), bags.offsets().long()
            keep = self._keep.get(lookup.vocabulary)
            if keep is not None:
                ids = ids.masked_fill(~keep[ids], OOV_ID)
            rows_Ld = nn.functional.embedding(ids, self._rows[self._names[lookup.table]])
            if lookup.table in self._factors:
                rows_Ld = rows_Ld @ self._factors[lookup.table]
            if lookup.pooling is None:
                embedded.sequences[lookup.feature] = (rows_Ld, offsets)
                continue
            if lookup.weighted:
                rows_Ld = rows_Ld * bags.weights().unsqueeze(1)
            sums_BD = torch.segment_reduce(rows_Ld, "sum", offsets=offsets, axis=0, initial=0)
            if lookup.pooling == "mean":
                sums_BD = sums_BD / offsets.diff().clamp(min=1).unsqueeze(1)
            (embedded.wide if lookup.wide else embedded.pooled)[lookup.feature] = sums_BD
        return embedded
