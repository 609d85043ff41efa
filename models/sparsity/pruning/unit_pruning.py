"""Pruning of whole hidden units while training: matrices get narrower at export, and therefore faster."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from models.layers.part import UnitGroup
from models.sparsity.lever import Lever, Schedule, Sparsity, State, tensors
from models.sparsity.removal.units import remove_dead_units

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class UnitPruningConfig(Schedule):
    """Prune hidden units of tower and experts on a cubic schedule.

    Attributes:
        sparsity: Share of every layer's units that is removed in the end.
    """

    sparsity: Sparsity


class UnitPruning(Lever):
    """Zeroes the units with the smallest product of incoming and outgoing norm, the same share of every layer.

    The product does not change if the incoming weights of a ReLU unit are scaled up and its outgoing weights down by
    the same factor, so it measures the effect of a unit.
    """

    name: ClassVar[str] = "unit_pruning"

    def __init__(self, config: UnitPruningConfig) -> None:
        self.config = config
        self._alive: dict[str, Tensor] = {}

    def build(self, ranker: "Ranker") -> None:
        if not ranker.unit_groups():
            raise UserError(
                "sparsity.unit_pruning: model.tower has no hidden units; leave the lever out, or give it hidden layers."
            )

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._ramp = self.config.steps(total_steps)
        self._groups = ranker.unit_groups()
        for group in self._groups:
            self._alive.setdefault(group.name, torch.ones(group.units, dtype=torch.bool))

    def after_step(self, ranker: "Ranker", step: int) -> None:
        if self._ramp.due(step):
            for group in self._groups:
                self._alive[group.name] &= self._best(group, step)
        self._apply()

    def _apply(self) -> None:
        for group in self._groups:
            group.scale_(self._alive[group.name])

    def settled(self, step: int) -> bool:
        return step > self._ramp.end

    def _best(self, group: UnitGroup, step: int) -> Tensor:
        incoming, outgoing = group.squares()
        count = group.units - int(self._ramp.share(step) * self.config.sparsity * group.units)
        best = torch.zeros(group.units, dtype=torch.bool)
        best[(incoming * outgoing).cpu().topk(max(count, 1)).indices] = True
        return best

    def finish(self, ranker: "Ranker") -> None:
        self._apply()

    def shrink(self, weights: "Weights") -> None:
        remove_dead_units(weights)

    def state_dict(self) -> State:
        return tensors(self._alive)

    def load_state_dict(self, state: State) -> None:
        self._alive = {name: mask.bool() for name, mask in state.items()}
