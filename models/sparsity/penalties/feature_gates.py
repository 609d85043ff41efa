"""Feature selection while training: a gate on every feature, which closes if the feature saves less loss than it costs.

``strength`` times the expected number of open gates is added to the ranker's loss. The gate of a feature that lowers
the loss by less than ``strength`` closes. At export its id space is removed from the artifact, and if the ranker's
parts allow it, its columns are removed from the matrices.
"""

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from models.layers.gates import FeatureGates
from models.sparsity.lever import Lever, Penalty, Strength
from models.sparsity.removal.features import drop_features

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class FeatureGatesConfig(Penalty):
    """Learned gates on features; sets ``model.gates``.

    Attributes:
        strength: Loss (nats per row) that a feature must save to be kept.
    """

    strength: Strength = 2e-3


class FeatureSelection(Lever):
    """L0 penalty on hard-concrete gates (see :class:`models.layers.gates.FeatureGates`)."""

    name: ClassVar[str] = "feature_gates"

    def __init__(self, config: FeatureGatesConfig) -> None:
        self.config = config

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._settle = self.config.settle * total_steps

    def settled(self, step: int) -> bool:
        return step >= self._settle

    def loss(self, ranker: "Ranker") -> Tensor | None:
        assert isinstance(ranker.gates, FeatureGates), "the config sets model.gates together with this lever"
        return self.config.strength * ranker.gates.chance_open().sum()

    def shrink(self, weights: "Weights") -> None:
        drop_features(weights, {name for name, gate in gate_values(weights).items() if gate == 0})


def gate_values(weights: "Weights") -> dict[str, float]:
    """The gate of every feature by name, as in evaluation."""
    gates = weights.dense_ranker().gates
    assert gates is not None, "the config sets model.gates together with this lever"
    return gates.values()
