"""Embedding tables as ordinary float32 parameters: no sharding, no fused optimizer.

Letters: R rows of a table, d its stored width, D its width in the ranker.
"""

from collections.abc import Callable, Mapping
from typing import Self

from torch import Tensor, nn

from data_pipelines.batch import Batch, Schema
from models.tables.config import TablesConfig
from models.tables.id_changes import IdChanges, redirected
from models.tables.lookup import Embedded
from models.tables.plan import OOV_ID, lookup_plan


class PlainTables(nn.Module):
    """A ranker's ``tables`` as plain parameters: the reference of the faster implementations.

    Args:
        tables: (R, d) float32 by table name; copied.
        keep: (R,) bool by vocabulary: ids of rows that are False are looked up as OOV.
        factors: (d, D) float32 by name of a table that is stored with fewer columns than the ranker reads.
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
        self.lookup_plan = lookup_plan(schema, config)
        self._names = {name: index for index, name in enumerate(tables)}
        self._rows = nn.ParameterList([nn.Parameter(table.clone()) for table in tables.values()])
        self._keep, self._factors = dict(keep), dict(factors)

    @property
    def tables(self) -> dict[str, Tensor]:
        """The parameters by table name."""
        return {name: self._rows[index] for name, index in self._names.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep = {name: fn(keep_R) for name, keep_R in self._keep.items()}
        self._factors = {name: fn(factor_dD) for name, factor_dD in self._factors.items()}
        return self

    def forward(self, batch: Batch | IdChanges) -> Embedded:
        embedded = Embedded({}, {}, {})
        redirects = {
            lookup.feature: redirected(self._keep[lookup.vocabulary], OOV_ID)
            for lookup in self.lookup_plan.lookups
            if lookup.vocabulary in self._keep
        }
        batch = IdChanges.of(batch).change(redirects).batch(self.lookup_plan.mean_weighted)
        for lookup in self.lookup_plan.lookups:
            bags = batch.keyed(weighted=lookup.weighted)[lookup.feature]
            rows_Ld = nn.functional.embedding(bags.values().long(), self._rows[self._names[lookup.table]])
            if lookup.table in self._factors:
                rows_Ld = rows_Ld @ self._factors[lookup.table]
            if lookup.weighted:
                rows_Ld = rows_Ld * bags.weights().unsqueeze(1)
            embedded.add(lookup, rows_Ld, bags.offsets().long())
        return embedded
