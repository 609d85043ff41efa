"""Low-rank factors at export: tables as narrow rows times a small matrix, cross layers as two thin ones.

The truncated singular value decomposition is the best approximation of its rank in squared error (Eckart & Young 1936).
Unlike zeros, a factor changes logits; the artifact's check against the run says by how much.

Letters: R rows, d stored width, D width the ranker sees, r rank.
"""

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from data_pipelines.errors import UserError
from models.layers.truncation import truncated_svd
from models.sparsity.lever import Count, Density, Lever, LeverConfig
from models.sparsity.tables import check_names, chosen_tables, kept_tables

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class LowRankConfig(LeverConfig):
    """Factor tables and cross layers at export.

    Attributes:
        tables: Rank of every table, or by table name (not factored if absent).
        energy: Instead of ``tables``: the smallest rank of each table that keeps this share of its squared norm.
        cross: Rank of every cross layer's matrix.
    """

    tables: Count | dict[str, Count] | None = None
    energy: Density | None = None
    cross: Count | None = None

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.tables is not None and self.energy is not None:
            raise ValueError("energy chooses the ranks itself: remove either tables or energy")
        return self


class LowRank(Lever):
    """Truncated SVD of tables and cross layers; changes nothing while training."""

    name: ClassVar[str] = "low_rank"
    _KEY = "sparsity.low_rank"

    def __init__(self, config: LowRankConfig) -> None:
        self.config = config

    def build(self, ranker: "Ranker") -> None:
        layouts = chosen_tables(ranker.tables, (), self._KEY)
        if isinstance(self.config.tables, dict):
            check_names(self.config.tables, {t.name for t in layouts}, f"{self._KEY}.tables", "table")
        if self.config.cross is not None and not ranker.interaction.factorable:
            raise UserError(
                f"{self._KEY}.cross factors cross layers, and model.interaction.kind is "
                f"{ranker.interaction.config.kind!r}: leave the key out."
            )

    def shrink(self, weights: "Weights") -> None:
        for name, kept_Rd in kept_tables(weights).items():
            rank = self._rank(name, kept_Rd)
            if rank < kept_Rd.shape[1]:
                _, factor_rd = truncated_svd(kept_Rd, rank)
                widen = weights.factors.get(name)
                weights.tables[name] = weights.tables[name] @ factor_rd.T
                weights.factors[name] = factor_rd if widen is None else factor_rd @ widen
        if self.config.cross is not None:
            with weights.narrowing() as ranker:
                ranker.interaction.factor(self.config.cross)

    def _rank(self, name: str, table_Rd: Tensor) -> int:
        asked = self.config.tables
        if self.config.energy is not None:
            share = torch.linalg.svdvals(table_Rd).square().cumsum(0)
            return int((share < self.config.energy * share[-1]).sum()) + 1
        rank = asked.get(name) if isinstance(asked, dict) else asked
        return table_Rd.shape[1] if rank is None else rank
