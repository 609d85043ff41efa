"""Pruning after training: rows are removed at export, by magnitude or first-order saliency, for one byte budget.

Letters: R rows of a table, d its width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from data_pipelines.batch import Batch
from models.codecs.quantization import row_bytes
from models.layers.heads import TaskKind, task_losses
from models.sparsity.lever import Count, Lever, LeverConfig, Sparsity
from models.sparsity.pruning.row_pruning import prepare_masks
from models.sparsity.tables import chosen_tables
from models.tables.plain import PlainTables
from models.tables.plan import OOV_ID, lookup_plan

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights

_KEY = "sparsity.post_pruning"


class PostPruningConfig(LeverConfig):
    """Prune rows at export.

    Attributes:
        sparsity: Share of all bytes of rows that is removed, over all tables together.
        byte_budget: Instead of ``sparsity``: the bytes that all rows may take, at the bits they are exported with.
        by: ``saliency``: first-order estimate, on rows of the valid split, of how the loss changes when the row is
            replaced by the OOV row; ``distance``: how far the row is from the OOV row; ``magnitude``: its norm.
        tables: Names of tables; empty for all.
    """

    sparsity: Sparsity | None = None
    byte_budget: Count | None = None
    by: Literal["saliency", "distance", "magnitude"] = "saliency"
    tables: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if (self.sparsity is None) == (self.byte_budget is None):
            raise ValueError("give either sparsity or byte_budget")
        return self


class PostPruning(Lever):
    """Keeps the rows with the highest score per byte until the budget is spent, over all tables together."""

    name: ClassVar[str] = "post_pruning"

    def __init__(self, config: PostPruningConfig) -> None:
        self.config = config
        self._scores: dict[str, Tensor] = {}

    def build(self, ranker: "Ranker") -> None:
        layouts = chosen_tables(ranker.tables, self.config.tables, f"{_KEY}.tables")
        prepare_masks(ranker, {layout.vocabulary for layout in layouts}, _KEY)

    def calibrate(self, weights: "Weights", batches: Iterable[Batch], kinds: Sequence[TaskKind]) -> None:
        if self.config.by == "saliency":
            self._scores = row_saliency(weights, batches, kinds)

    def shrink(self, weights: "Weights") -> None:
        scores = self._scores or {
            name: _squared_norms(table, from_oov=self.config.by == "distance") for name, table in weights.tables.items()
        }
        by_vocabulary: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for layout in lookup_plan(weights.schema, weights.config).tables:
            name = layout.vocabulary
            if not self.config.tables or name in self.config.tables:
                by_vocabulary[name] = by_vocabulary.get(name, 0) + scores[layout.name]
                width = weights.tables[layout.name].shape[1]
                sizes[name] = sizes.get(name, 0) + row_bytes(width, weights.bits.get(layout.name, 32))
        for name, score_R in by_vocabulary.items():
            score_R[: weights.schema.table(name).reserved] = torch.inf
            if name in weights.keep:
                score_R[~weights.keep[name]] = -torch.inf
        budget = self.config.byte_budget
        if budget is None:
            assert self.config.sparsity is not None
            total = sum(sizes[name] * int((score > -torch.inf).sum()) for name, score in by_vocabulary.items())
            budget = int((1 - self.config.sparsity) * total)
        weights.keep |= within_budget(by_vocabulary, sizes, budget)


def within_budget(scores: Mapping[str, Tensor], sizes: Mapping[str, int], budget: int) -> dict[str, Tensor]:
    """Masks (R,) of the rows with the highest score per byte, as many as ``budget`` bytes hold.

    Rows with an infinite score are always kept, those with minus infinity never.
    """
    value = torch.cat([score / sizes[name] for name, score in scores.items()])
    cost = torch.cat([torch.full((len(score),), sizes[name]) for name, score in scores.items()])
    order = value.argsort(descending=True, stable=True)
    kept = torch.zeros(len(value), dtype=torch.bool)
    kept[order] = cost[order].cumsum(0) <= budget
    kept = (kept | (value == torch.inf)) & (value > -torch.inf)
    parts = torch.split(kept, [len(score) for score in scores.values()])
    return dict(zip(scores, parts, strict=True))


def row_saliency(weights: "Weights", batches: Iterable[Batch], kinds: Sequence[TaskKind]) -> dict[str, Tensor]:
    """(R,) by table: ``|g . (w_oov - w)|`` summed over batches, g being the gradient of the loss by the row.

    A first-order estimate, like the Taylor criterion for filters (Molchanov et al., 1611.06440), of what really happens
    to a pruned row: its ids are looked up as OOV.
    """
    ranker = replace(weights, grids={}).to_ranker()  # integers have no gradient
    assert isinstance(ranker.tables, PlainTables)
    tables = ranker.tables.tables
    scores = {name: torch.zeros(len(table)) for name, table in tables.items()}
    for batch in batches:
        assert batch.labels is not None
        loss = task_losses(batch.of_sample(ranker(batch)), batch.labels, kinds, batch.weights).sum()
        gradients = torch.autograd.grad(loss, list(tables.values()), allow_unused=True)
        for (name, table), gradient in zip(tables.items(), gradients, strict=True):
            if gradient is not None:
                change_Rd = table.detach()[OOV_ID] - table.detach()
                scores[name] += (gradient * change_Rd).sum(1).abs()
    return scores


def _squared_norms(table_Rd: Tensor, *, from_oov: bool) -> Tensor:
    return (table_Rd - table_Rd[OOV_ID] if from_oov else table_Rd).square().sum(1)
