"""The effective rank of every table of a run: how many of their dimensions its embeddings use.

Letters: R rows of a table.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.damage import intact
from models.tables.effective_rank import effective_rank
from models.tables.plan import TableLayout, lookup_plan
from models.weights import Weights
from serving.artifact.card import Value

RANKS_FILE = "table_ranks.json"
"""What :func:`table_ranks` found when a run was evaluated last."""


class TableRank(BaseModel):
    """How many dimensions of a table are used.

    Attributes:
        rank: The effective rank (:func:`~models.tables.effective_rank.effective_rank`); NaN if weights are not finite.
        dim: The width of the table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rank: Value
    dim: int

    def __str__(self) -> str:
        return f"{self.rank:.1f} of {self.dim}"


TableRanks = dict[str, TableRank]
_RANKS = TypeAdapter(TableRanks)


def table_ranks(weights: Weights, dataset: Dataset) -> TableRanks:
    """The effective rank of every table but those of the wide part, by table.

    Rows count as often as training saw their values: many rows of a table are rare and near their start values, and say
    little about what the ranker reads. Tables whose counts are not kept (hours, buckets, hashes) count each row once.
    """
    layouts = [layout for layout in lookup_plan(weights.schema, weights.config).tables if not layout.wide]
    return {layout.name: _rank(layout, weights, dataset) for layout in layouts}


def _rank(layout: TableLayout, weights: Weights, dataset: Dataset) -> TableRank:
    table_Rd, factor = weights.tables[layout.name], weights.factors.get(layout.name)
    vocabulary = dataset.encoder.vocabulary(layout.vocabulary)
    count_R = torch.zeros(dataset.schema.table(layout.vocabulary).rows)
    count_R[vocabulary["id"].to_torch().long()] = vocabulary["count"].to_torch().float()
    known = len(count_R) == len(table_Rd) and bool(count_R.any())  # rows on demand are in no order of their values
    rank = effective_rank(table_Rd if factor is None else table_Rd @ factor, count_R if known else None)
    return TableRank(rank=rank, dim=layout.dim)


def shown_ranks(ranks: TableRanks, *, as_json: bool) -> dict[str, Any]:
    """The ranks as a command prints them: one line per table, or numbers for JSON."""
    return {name: rank.model_dump() if as_json else str(rank) for name, rank in ranks.items()}


def write_table_ranks(run: Path, ranks: TableRanks) -> None:
    """Keep the ranks with a run."""
    (run / RANKS_FILE).write_bytes(_RANKS.dump_json(ranks, indent=1))


def read_table_ranks(run: Path) -> TableRanks:
    """The ranks that the last evaluation of a run kept; empty if there was none.

    Raises:
        UserError: The file is damaged.
    """
    file = run / RANKS_FILE
    if not file.is_file():
        return {}
    with intact(file):
        return _RANKS.validate_json(file.read_bytes())
