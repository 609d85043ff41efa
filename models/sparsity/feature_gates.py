"""Feature selection while training: a gate on every feature, driven to exact zeros by proximal L1.

A feature that the loss does not pull on loses its gate; its id space leaves the artifact, and where the ranker's parts
allow it, so do its columns of the matrices.

Letters: F sparse features, G dense features.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from models.gates import FeatureGates
from models.sparsity.features import drop_features
from models.sparsity.l1 import soft_threshold_
from models.sparsity.lever import Lever, Penalty, Share, State, Strength, tensors

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class FeatureGatesConfig(Penalty):
    """Learned gates on features; sets ``model.gates``.

    Attributes:
        strength: What a gate loses in one step: learning rate times the weight of the L1 term. Gates start at 1.
        begin: Share of all steps before which gates are left to learn.
    """

    strength: Strength
    begin: Share = 0.1


class FeatureSelection(Lever):
    """Proximal L1 on the gates; one that has reached zero stays there."""

    name: ClassVar[str] = "feature_gates"

    def __init__(self, config: FeatureGatesConfig) -> None:
        self.config = config
        # The step after which a gate closed; 0 while it is open.
        self._closed: dict[str, Tensor] = {}

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._begin = int(self.config.begin * total_steps)
        self._settle = self.config.settle * total_steps
        for name, gate in self._gates(ranker).items():
            self._closed.setdefault(name, torch.zeros_like(gate, dtype=torch.int64))

    def settled(self, step: int) -> bool:
        return step >= self._settle

    @torch.no_grad()
    def after_step(self, ranker: "Ranker", step: int) -> None:
        if step < self._begin:
            return
        for name, gate in self._gates(ranker).items():
            soft_threshold_(gate, self.config.strength)
            closed = self._closed[name] = self._closed[name].to(gate.device)
            closed[(gate == 0) & (closed == 0)] = step + 1
            gate.masked_fill_(closed > 0, 0.0)

    @torch.no_grad()
    def finish(self, ranker: "Ranker") -> None:
        for name, gate in self._gates(ranker).items():
            gate.masked_fill_(self._closed[name].to(gate.device) > 0, 0.0)

    @staticmethod
    def _gates(ranker: "Ranker") -> dict[str, torch.nn.Parameter]:
        assert isinstance(ranker.gates, FeatureGates), "the config sets model.gates together with this lever"
        return dict(ranker.gates.named_parameters())

    def shrink(self, weights: "Weights") -> None:
        drop_features(weights, {name for name, gate in gate_values(weights).items() if gate == 0})

    def state_dict(self) -> State:
        return tensors(self._closed)

    def load_state_dict(self, state: State) -> None:
        self._closed = dict(state)


def gate_values(weights: "Weights") -> dict[str, float]:
    """The gate of every feature by name."""
    gates = [*weights.dense["gates.sparse_F"].tolist(), *weights.dense["gates.dense_G"].tolist()]
    return dict(zip(weights.schema.feature_names, gates, strict=True))
