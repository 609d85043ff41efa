"""Pruning of whole hidden units while training: matrices get narrower at export, and so really faster."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from models.sparsity.lever import Lever, Schedule, Sparsity, State, tensors
from models.sparsity.units import UnitLayer, remove_dead_units, unit_layers

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class UnitPruningConfig(Schedule):
    """Prune hidden units of tower and experts on a cubic schedule.

    Attributes:
        sparsity: Share of every layer's units that is gone in the end.
    """

    sparsity: Sparsity


class UnitPruning(Lever):
    """Zeroes the units with the smallest product of incoming and outgoing norm, the same share of every layer.

    The product stays the same when a ReLU unit's input is scaled up and its output down by as much, so it ranks units
    by what they do, not by how the scale is shared out.
    """

    name: ClassVar[str] = "unit_pruning"

    def __init__(self, config: UnitPruningConfig) -> None:
        self.config = config
        self._alive: dict[str, Tensor] = {}

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._ramp = self.config.steps(total_steps)
        self._layers = unit_layers(dict(ranker.named_parameters()))
        for layer in self._layers:
            self._alive.setdefault(layer.name, torch.ones(layer.units, dtype=torch.bool))

    def after_step(self, ranker: "Ranker", step: int) -> None:
        parameters = dict(ranker.named_parameters())
        if self._ramp.due(step):
            for layer in self._layers:
                self._alive[layer.name] &= self._best(layer, parameters, step)
        for layer in self._layers:
            layer.scale_(parameters, self._alive[layer.name])

    def settled(self, step: int) -> bool:
        return step > self._ramp.end

    def _best(self, layer: UnitLayer, parameters: dict[str, torch.nn.Parameter], step: int) -> Tensor:
        incoming, outgoing = layer.squares(parameters)
        count = layer.units - int(self._ramp.share(step) * self.config.sparsity * layer.units)
        best = torch.zeros(layer.units, dtype=torch.bool)
        best[(incoming * outgoing).cpu().topk(max(count, 1)).indices] = True
        return best

    def finish(self, ranker: "Ranker") -> None:
        parameters = dict(ranker.named_parameters())
        for layer in self._layers:
            layer.scale_(parameters, self._alive[layer.name])

    def shrink(self, weights: "Weights") -> None:
        remove_dead_units(weights)

    def state_dict(self) -> State:
        return tensors(self._alive)

    def load_state_dict(self, state: State) -> None:
        self._alive = {name: mask.bool() for name, mask in state.items()}
