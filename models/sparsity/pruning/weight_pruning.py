"""Gradual magnitude pruning of single weights of the dense part (Zhu & Gupta, 1710.01878)."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from models.sparsity.lever import Schedule, Sparsity
from models.sparsity.pruning.masks import MaskConfig, MaskLever

if TYPE_CHECKING:
    from models.ranker import Ranker


class WeightPruningConfig(Schedule, MaskConfig):
    """Prune single weights by magnitude while training.

    Attributes:
        sparsity: Share of weights that is zero in the end.
        scope: ``global`` ranks all weights together (after dividing each layer by its standard deviation); ``layer``
            prunes the same share of every layer.
    """

    sparsity: Sparsity
    scope: Literal["global", "layer"] = "layer"


class WeightPruning(MaskLever):
    """Keeps a mask over dense weights and raises its sparsity on a cubic schedule."""

    name: ClassVar[str] = "weight_pruning"

    def __init__(self, config: WeightPruningConfig) -> None:
        super().__init__(config)
        self.config = config

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._ramp = self.config.steps(total_steps)
        self._masks.fill(ranker)
        self._masks.apply(ranker)

    def after_step(self, ranker: "Ranker", step: int) -> None:
        if self._ramp.due(step):
            scores = {name: weight.detach().abs() for name, weight in self._masks.weights(ranker).items()}
            sparsity = self._ramp.share(step) * self.config.sparsity
            self._masks.masks = magnitude_masks(scores, sparsity, self.config.scope)
        super().after_step(ranker, step)

    def settled(self, step: int) -> bool:
        return step > self._ramp.end


def magnitude_masks(scores: dict[str, Tensor], sparsity: float, scope: Literal["global", "layer"]) -> dict[str, Tensor]:
    """Masks that keep the highest ``1 - sparsity`` of the scores, over each layer or over all together.

    Exactly this share is removed, even with ties: among equal scores, the first in memory is kept.
    """
    if scope == "layer":
        return {name: _largest(score, sparsity) for name, score in scores.items()}
    scaled = [(score / score.std().clamp_min(1e-12)).flatten() for score in scores.values()]
    keep = _largest(torch.cat(scaled), sparsity)
    parts = torch.split(keep, [len(part) for part in scaled])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(score: Tensor, sparsity: float) -> Tensor:
    kept = score.numel() - round(sparsity * score.numel())
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().argsort(descending=True, stable=True)[:kept]] = True
    return mask.view_as(score)
