"""Learnable thresholds on embedding tables (PEP): the share of each table, row or dimension to prune is learned.

The forward pass sees ``sign(w) max(|w| - sigmoid(s), 0)`` (Liu et al., 2101.07577). The thresholds s learn from the
loss of the task, with an upward regulariser, until the target sparsity is reached. Then they are frozen, and the rest
of training tunes the remaining weights.

Letters: R rows, d embedding dimension, L looked-up rows.
"""

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from models.sparsity.lever import Count, Lever, LeverConfig, Sparsity, Strength
from models.sparsity.pruning.row_pruning import prepare_masks, redirect
from models.sparsity.tables import chosen_tables, reserved_rows, row_sums, shards, transform_rows
from models.tables.lookup import SparseTables
from models.tables.plan import OOV_ID
from models.tables.rows import TableShard

if TYPE_CHECKING:
    from models.ranker import Ranker

_MODULE = "pep"


class PepConfig(LeverConfig):
    """Learnable thresholds.

    Attributes:
        sparsity: Share of zeros in the tables at which thresholds are frozen.
        granularity: One threshold for a ``table``, for each ``dimension``, or for each ``row``.
        initial: First value of s: the first threshold is sigmoid(s).
        speed: How many times faster thresholds move than other parameters.
        pressure: Weight of the regulariser ``-mean(s)``.
        every: Steps between two counts of zeros; rows that are all zero are pruned then.
        tables: Names of tables; empty for all.
    """

    sparsity: Sparsity
    granularity: Literal["table", "dimension", "row"] = "dimension"
    initial: float = -7.0
    speed: Strength = 10.0
    pressure: Strength = 1e-3
    every: Count = 50
    tables: tuple[str, ...] = ()


class Thresholds(nn.Module):
    """The thresholds of all tables; parameters of the ranker while it trains.

    They are stored as ``(s - initial) / speed``, so that one optimizer step moves s by ``speed`` times its usual size.
    """

    frozen: Tensor

    def __init__(self, shapes: dict[str, tuple[int, int]], config: PepConfig) -> None:
        super().__init__()
        self._config = config
        self.moves = nn.ParameterDict({key: nn.Parameter(torch.zeros(shape)) for key, shape in shapes.items()})
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def threshold(self, key: str) -> Tensor:
        """(1 or R, 1 or d) threshold of a table."""
        move = self.moves[key]
        return torch.sigmoid(self._config.initial + self._config.speed * torch.where(self.frozen, move.detach(), move))

    def pressure(self) -> Tensor:
        """Mean of s over tables, up to a constant."""
        return self._config.speed * torch.stack([move.mean() for move in self.moves.values()]).mean()


def soft_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """``sign(w) max(|w| - threshold, 0)``."""
    return weight.sign() * (weight.abs() - threshold).relu()


class Pep(Lever):
    """Learned thresholds on the values of sharded tables (see :class:`PepConfig`)."""

    name: ClassVar[str] = "pep"
    _KEY = "sparsity.pep"

    def __init__(self, config: PepConfig) -> None:
        self.config = config

    def build(self, ranker: "Ranker") -> None:
        layouts = [t for t in chosen_tables(ranker.tables, self.config.tables, f"{self._KEY}.tables") if not t.wide]
        by_row, by_dimension = (self.config.granularity == kind for kind in ("row", "dimension"))
        self._thresholds = Thresholds(
            {t.key: (t.rows if by_row else 1, t.dim if by_dimension else 1) for t in layouts}, self.config
        )
        ranker.add_module(_MODULE, self._thresholds)
        transform_rows(ranker, {layout.name: partial(self._shrink_rows, layout.key) for layout in layouts})
        prepare_masks(ranker, {layout.vocabulary for layout in layouts}, self._KEY)

    def _shrink_rows(self, key: str, rows_Ld: Tensor, ids_L: Tensor) -> Tensor:
        threshold = self._thresholds.threshold(key)
        return soft_threshold(rows_Ld, threshold[ids_L] if len(threshold) > 1 else threshold)

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        layouts = chosen_tables(ranker.tables, self.config.tables, f"{self._KEY}.tables")
        self._layouts = [layout for layout in layouts if not layout.wide]
        self._keys = {layout.name: layout.key for layout in self._layouts}
        self._reserved = {t.vocabulary: reserved_rows(ranker.schema.tables, t.vocabulary) for t in self._layouts}

    def loss(self, ranker: "Ranker") -> Tensor | None:
        if not self.config.pressure or bool(self._thresholds.frozen):
            return None
        return -self.config.pressure * self._thresholds.pressure()

    @torch.no_grad()
    def after_step(self, ranker: "Ranker", step: int) -> None:
        if (step + 1) % self.config.every == 0 and not bool(self._thresholds.frozen):
            living = row_sums(ranker.tables, self._layouts, self._living)
            numbers = sum(layout.rows * layout.dim for layout in self._layouts)
            density = sum(float(count.sum()) for count in living.values()) / numbers
            self._thresholds.frozen.fill_(1 - density >= self.config.sparsity)
            masks = {}
            for layout in self._layouts:
                masks[layout.vocabulary] = living[layout.name] > 0
                masks[layout.vocabulary][: max(self._reserved[layout.vocabulary], OOV_ID + 1)] = True
            redirect(ranker, masks)

    def settled(self, step: int) -> bool:
        return bool(self._thresholds.frozen) or self.config.pressure == 0

    def _living(self, weight: Tensor, shard: TableShard) -> Tensor:
        return (weight.abs() > self._of_shard(shard)).float()

    def _of_shard(self, shard: TableShard) -> Tensor:
        threshold = self._thresholds.threshold(self._keys[shard.table])
        if self.config.granularity == "row":
            return threshold[shard.row_offset : shard.row_offset + len(shard.weight)]
        if self.config.granularity == "dimension":
            return threshold[:, shard.col_offset : shard.col_offset + shard.weight.shape[1]]
        return threshold

    @torch.no_grad()
    def finish(self, ranker: "Ranker") -> None:
        """Apply the thresholds to the tables."""
        assert isinstance(ranker.tables, SparseTables)
        for _, shard in shards(ranker.tables, self._layouts):
            shard.weight.copy_(soft_threshold(shard.weight, self._of_shard(shard)))
        for layout in self._layouts:
            del ranker.tables.row_transforms[layout.name]
        delattr(ranker, _MODULE)
