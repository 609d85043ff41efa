"""The part of the ranker that pools every history which is read as a sequence.

Letters: B rows of a batch, L events of all rows, C width of one event (its columns side by side), N candidates of one
history.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from data_pipelines.batch import Schema, SparseSpec
from data_pipelines.errors import UserError
from models.layers.histories.jagged import last_event
from models.layers.part import Component, Part
from models.tables.config import TablesConfig
from models.tables.lookup import Embedded
from models.tables.poolings import SIMPLE, HistoryPooling, pooling_class


class Histories(Part):
    """Pools every history that is looked up as a sequence, all its columns together.

    Raises:
        UserError: A pooling needs a candidate, and no feature of the row shares a table with any of its columns.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        self.columns: dict[str, list[str]] = {}
        self.widths: dict[str, list[int]] = {}
        self.candidates: dict[str, list[str]] = {}
        self.longest: dict[str, int] = {}
        self.last: list[str] = []
        self.pools = nn.ModuleDict()
        sequences: dict[str, list[SparseSpec]] = {}
        for feature in schema.sparse:
            if feature.sequence and config.pooling_of(feature) not in ("sum", "mean"):
                sequences.setdefault(feature.sequence, []).append(feature)
        for history, features in sequences.items():
            kind = config.pooling.get(history)
            if kind is None or kind in SIMPLE:
                self.last += [feature.name for feature in features]
                continue
            candidates = {feature.name: _candidate(schema, feature) for feature in features}
            features = sorted(features, key=lambda feature: candidates[feature.name] is None)
            dims = {feature.name: config.table_dim(feature.table) for feature in features}
            query = [feature.name for feature in features if candidates[feature.name]]
            pooling = pooling_class(kind)
            if pooling.needs_candidate and not query:
                raise UserError(
                    f"model.pooling.{history}: {kind} needs a candidate; let a feature share a table with one of "
                    f"{', '.join(dims)}, or choose another pooling."
                )
            self.columns[history] = list(dims)
            self.widths[history] = list(dims.values())
            self.longest[history] = max(feature.max_length or 1 for feature in features)
            self.candidates[history] = [cast(str, candidates[name]) for name in query]
            width, query_width = sum(dims.values()), sum(dims[name] for name in query)
            key = f"history:{history}".replace(".", ":")
            self.pools[key] = pooling(query_width, width - query_width)

    def components(self, path: str) -> Iterator[Component]:
        """The poolings' tensors, and their work for a row whose histories are as long as the config admits."""
        work: dict[str, int] = {}
        for (key, pool), events in zip(self.pools.items(), self.longest.values(), strict=True):
            prefix = f"{path}.pools.{key}".removeprefix(".")
            work |= {f"{prefix}.{name}": flops for name, flops in cast(HistoryPooling, pool).work(events).items()}
        for component in super().components(path):
            yield replace(component, flops=work.get(component.name, component.flops))

    def forward(self, embedded: Embedded) -> dict[str, Tensor]:
        """(B, d) by feature name, for every feature in ``embedded.sequences``.

        If ``embedded.pooled`` holds (B, N, d), N candidates of each of the B histories, poolings that read the
        candidate give (B, N, d) too.
        """
        pooled = {name: last_event(*embedded.sequences[name]) for name in self.last if name in embedded.sequences}
        for (history, columns), pool in zip(self.columns.items(), self.pools.values(), strict=True):
            if columns[0] not in embedded.sequences:
                continue
            events_LC = torch.cat([embedded.sequences[name][0] for name in columns], 1)
            offsets = embedded.sequences[columns[0]][1]
            if cast(HistoryPooling, pool).needs_candidate:
                candidate = torch.cat([embedded.pooled[name] for name in self.candidates[history]], -1)
            else:
                candidate = events_LC.new_empty(len(offsets) - 1, 0)
            pool_events = cast(HistoryPooling, pool).pool_candidates if candidate.dim() == 3 else pool
            pooled_BC = pool_events(candidate, events_LC, offsets)
            pooled |= dict(zip(columns, torch.split(pooled_BC, self.widths[history], -1), strict=True))
        return pooled


def _candidate(schema: Schema, column: SparseSpec) -> str | None:
    """The feature of the row itself that indexes the same table; an id is preferred to a bag."""
    same = [feature for feature in schema.sparse if feature.table == column.table and feature.sequence is None]
    same.sort(key=lambda feature: feature.kind != "id")
    return same[0].name if same else None
