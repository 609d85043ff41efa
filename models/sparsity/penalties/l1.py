"""L1 by proximal steps: soft-thresholding gives exact zeros, where a subgradient would only oscillate around them.

After a step on the loss, every weight moves towards zero by a threshold and stops there (ISTA; Beck & Teboulle 2009).
Under Adagrad the threshold of a weight is divided by the same root of summed squared gradients as its step (Duchi,
Hazan & Singer 2011): a fixed threshold would hardly affect rare rows, whose steps are large.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from models.sparsity.lever import Count, Lever, Penalty, Strength, dense_weights
from models.sparsity.tables import chosen_tables, shards
from models.tables.rows import TableShard

if TYPE_CHECKING:
    from models.ranker import Ranker

_EPS = 1e-8


class L1Config(Penalty):
    """Soft-threshold weights after optimizer steps.

    Attributes:
        dense: How far a dense weight moves in one step: the learning rate times the weight of the L1 penalty.
        tables: The same for embedding tables; under Adagrad divided by the root of the row's summed squared gradients.
        every: Steps between two sweeps over the tables; a sweep does the work of so many steps.
        only: Names of the tables to sweep; empty for all.
        layers: Prefixes of names of dense parameters; empty for the whole dense part.
    """

    dense: Strength = 0.0
    tables: Strength = 0.0
    every: Count = 20
    only: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


class L1(Lever):
    """Proximal L1 on dense weights at every step, on tables by periodic sweeps."""

    name: ClassVar[str] = "l1"

    def __init__(self, config: L1Config) -> None:
        self.config = config

    def build(self, ranker: "Ranker") -> None:
        chosen_tables(ranker.tables, self.config.only, "sparsity.l1.only")

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._settle = self.config.settle * total_steps

    def settled(self, step: int) -> bool:
        return step >= self._settle

    @torch.no_grad()
    def after_step(self, ranker: "Ranker", step: int) -> None:
        if self.config.dense:
            for _, _, _, weight in dense_weights(ranker, select=self.config.layers):
                soft_threshold_(weight, self.config.dense)
        if self.config.tables and (step + 1) % self.config.every == 0:
            layouts = chosen_tables(ranker.tables, self.config.only, "sparsity.l1.only")
            for _, shard in shards(ranker.tables, layouts):
                soft_threshold_(shard.weight, self.config.every * self.config.tables * adaptivity(shard))


def soft_threshold_(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """``sign(w) max(|w| - threshold, 0)`` in place: the proximal step of ``threshold * |w|``."""
    magnitude = (weight.abs() - threshold).clamp_(min=0)
    return weight.copy_(weight.sign() * magnitude)


def adaptivity(shard: TableShard) -> Tensor | float:
    """The factor of Adagrad on the learning rate: (r, 1) or (r, c); 1 under other optimizers.

    A row that was never looked up has no gradient and goes to zero at once.
    """
    if shard.squares is None:
        return 1.0
    squares = shard.squares if shard.squares.dim() == 2 else shard.squares.unsqueeze(1)
    return 1.0 / (squares.sqrt() + _EPS)
