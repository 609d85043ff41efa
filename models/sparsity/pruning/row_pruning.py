"""Pruning of embedding rows, during training or after it: the ids of a pruned row mean OOV from then on.

Letters: R rows of a table, d its width.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from models.sparsity.lever import Lever, Schedule, Sparsity
from models.sparsity.tables import chosen_tables, reserved_rows, row_sums, shards, squared_distance_to_oov
from models.tables.lookup import SparseTables
from models.tables.rows import TableShard

if TYPE_CHECKING:
    from models.ranker import Ranker


class RowPruningConfig(Schedule):
    """Prune rows of embedding tables while training.

    Attributes:
        sparsity: Share of the vocabulary's rows that is pruned in the end.
        tables: Names of tables; empty for all.
        by: The score of a row. ``magnitude``: its norm, divided by the square root of its width; ``distance``: its
            distance to the OOV row that replaces it; ``saliency``: this distance times the root of the row's summed
            squared gradients, which fused Adagrad stores; ``frequency``: how often it occurs. If absent, ``saliency``
            if all optimizers of tables store these sums, otherwise ``distance``.
        scope: ``global`` ranks the rows of all tables together; ``table`` prunes the same share of each.
    """

    sparsity: Sparsity
    tables: tuple[str, ...] = ()
    by: Literal["magnitude", "distance", "frequency", "saliency"] | None = None
    scope: Literal["global", "table"] = "table"


class RowPruning(Lever):
    """Gradual pruning of rows on a cubic schedule (Zhu & Gupta, 1710.01878) while the other rows are trained.

    The ids of pruned rows train the OOV row, so the artifact, whose vocabulary lacks them, equals the trained model.
    """

    name: ClassVar[str] = "row_pruning"

    def __init__(self, config: RowPruningConfig) -> None:
        self.config = config

    def build(self, ranker: "Ranker") -> None:
        layouts = chosen_tables(ranker.tables, self.config.tables, "sparsity.row_pruning.tables")
        prepare_masks(ranker, {layout.vocabulary for layout in layouts}, "sparsity.row_pruning")

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._layouts = chosen_tables(ranker.tables, self.config.tables, "sparsity.row_pruning.tables")
        self._reserved = {
            layout.vocabulary: reserved_rows(ranker.schema.tables, layout.vocabulary) for layout in self._layouts
        }
        self._ramp = self.config.steps(total_steps)
        summed = all(shard.squares is not None for _, shard in shards(ranker.tables, self._layouts))
        self._by = self.config.by or ("saliency" if summed else "distance")
        if self._by == "saliency" and not summed:
            raise UserError(
                "sparsity.row_pruning.by 'saliency' reads the sums of a fused Adagrad: set train.tables.optimizer to "
                "rowwise_adagrad or adagrad, or choose distance, magnitude or frequency."
            )

    def after_step(self, ranker: "Ranker", step: int) -> None:
        if self._ramp.due(step):
            sparsity = self._ramp.share(step) * self.config.sparsity
            masks = kept_rows(self._scores(ranker), self._reserved, sparsity, self.config.scope)
            redirect(ranker, masks)

    def settled(self, step: int) -> bool:
        return step > self._ramp.end

    def _scores(self, ranker: "Ranker") -> dict[str, Tensor]:
        if self._by == "frequency":
            return {
                layout.vocabulary: -torch.arange(layout.rows, dtype=torch.float32) / layout.rows
                for layout in self._layouts
            }
        if self._by in ("distance", "saliency"):
            squares = squared_distance_to_oov(ranker.tables, self._layouts)
        else:
            squares = row_sums(ranker.tables, self._layouts, lambda weight, _: weight.square())
        if self._by == "saliency":
            gradients = row_sums(ranker.tables, self._layouts, _squared_gradients)
            squares = {name: square * gradients[name] for name, square in squares.items()}
        scores: dict[str, Tensor] = {}
        for layout in self._layouts:
            scores[layout.vocabulary] = scores.get(layout.vocabulary, 0.0) + squares[layout.name] / layout.dim
        keep = _tables(ranker).keep
        return {name: score.masked_fill(~keep[name].cpu(), -1.0) for name, score in scores.items()}


def _squared_gradients(weight: Tensor, shard: TableShard) -> Tensor:
    """Adagrad's sums of squared gradients as (r, c), whether it keeps them by row or by value."""
    assert shard.squares is not None
    squares = shard.squares if shard.squares.dim() == 2 else shard.squares.unsqueeze(1)
    return squares.expand_as(weight)


def prepare_masks(ranker: "Ranker", vocabularies: Iterable[str], key: str) -> None:
    """Before sharding: give every vocabulary a mask, so that it is part of every checkpoint.

    Raises:
        UserError: A vocabulary does not have exactly one OOV bucket, which replaces pruned rows.
    """
    tables = _tables(ranker)
    for spec in ranker.schema.tables:
        if spec.name in vocabularies:
            if spec.oov_buckets != 1:
                raise UserError(
                    f"{key}: table {spec.name!r} has {spec.oov_buckets} OOV buckets, and pruned rows need exactly 1: "
                    "set oov_buckets to 1 for its features, or leave the table out."
                )
            if spec.name not in tables.keep:
                tables.set_keep(spec.name, torch.ones(spec.rows, dtype=torch.bool))


def redirect(ranker: "Ranker", masks: Mapping[str, Tensor]) -> None:
    """Narrow the masks of the ranker's tables: pruned rows stay pruned."""
    keep = _tables(ranker).keep
    for name, mask in masks.items():
        keep[name].logical_and_(mask.to(keep[name].device))


def kept_rows(
    scores: Mapping[str, Tensor], reserved: Mapping[str, int], sparsity: float, scope: Literal["global", "table"]
) -> dict[str, Tensor]:
    """Masks (R,) that drop the share ``sparsity`` of rows with the lowest scores; among equal ones, the last first.

    Reserved rows (null and OOV) are kept and not counted.
    """
    values = {name: score[reserved[name] :] for name, score in scores.items()}
    if scope == "table":
        kept = {name: _highest(score, sparsity) for name, score in values.items()}
    else:
        together = _highest(torch.cat(list(values.values())), sparsity)
        parts = torch.split(together, [len(score) for score in values.values()])
        kept = dict(zip(values, parts, strict=True))
    return {name: torch.cat([torch.ones(reserved[name], dtype=torch.bool), mask]) for name, mask in kept.items()}


def _highest(score_N: Tensor, sparsity: float) -> Tensor:
    count = len(score_N) - round(sparsity * len(score_N))
    mask_N = torch.zeros(len(score_N), dtype=torch.bool)
    mask_N[score_N.argsort(descending=True, stable=True)[:count]] = True
    return mask_N


def _tables(ranker: "Ranker") -> SparseTables:
    assert isinstance(ranker.tables, SparseTables)
    return ranker.tables
