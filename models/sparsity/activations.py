"""Sparse activations: DropConnect on weights, k-winners on units, and how sparse the units really are.

DropConnect (Wan et al., ICML 2013) zeroes weights, not outputs, at random in each training forward pass. k-winners
(Ahmad & Scheinkman, 1903.11257) lets only the k largest units of a layer pass, and helps units that rarely win.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from models.sparsity.lever import Density, Lever, LeverConfig, Rate, Strength, dense_weights
from models.sparsity.shadow import transform_weight

if TYPE_CHECKING:
    from models.ranker import Ranker


class DropConnectConfig(LeverConfig):
    """Zero each weight with probability ``rate`` in every training forward pass.

    Attributes:
        rate: Share of weights dropped; the rest are scaled by ``1 / (1 - rate)``.
        layers: Prefixes of parameter names; empty for the whole dense part.
    """

    rate: Rate
    layers: tuple[str, ...] = ()


class DropConnect(Lever):
    """Dropout on weights. Saves nothing at export by itself: it makes a network that loses less when pruned."""

    name: ClassVar[str] = "dropconnect"

    def __init__(self, config: DropConnectConfig) -> None:
        self.config = config

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        for module, attribute, _, _ in list(dense_weights(ranker, select=self.config.layers)):
            transform_weight(module, attribute, partial(self._drop, module))

    def _drop(self, module: nn.Module, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, self.config.rate, module.training)


class KWinnersConfig(LeverConfig):
    """Let only the largest units of every hidden layer pass.

    Attributes:
        density: Share of a layer's units that pass.
        boost: Strength of the advantage of units that rarely win while training; 0 for none.
    """

    density: Density
    boost: Strength = 0.5


class KWinners(nn.Module):
    """Top-k activation over the last dimension (after ReLU), with boosting by duty cycle while training.

    Args:
        density: Share of units that pass; ``k = max(1, round(density * units))``.
        boost: Units are ranked by ``x * exp(boost * (density - duty))`` while training, ``duty`` being the running
            share of rows in which a unit won.
    """

    duty_H: Tensor

    def __init__(self, units: int, density: float, boost: float) -> None:
        super().__init__()
        self.density, self.boost = density, boost
        self.k = max(1, round(density * units))
        self.register_buffer("duty_H", torch.full((units,), density))

    def forward(self, x_BH: Tensor) -> Tensor:
        x_BH = x_BH.relu()
        ranked_BH = x_BH.detach()
        if self.training and self.boost:
            ranked_BH = ranked_BH * torch.exp(self.boost * (self.density - self.duty_H))
        winners_Bk = ranked_BH.topk(self.k, dim=-1).indices
        mask_BH = torch.zeros_like(x_BH).scatter_(-1, winners_Bk, 1.0)
        if self.training:
            share_H = (mask_BH * (x_BH > 0)).flatten(0, -2).mean(0)
            self.duty_H.lerp_(share_H.detach(), 0.01)
        return x_BH * mask_BH


@contextmanager
def measure_activity(ranker: nn.Module) -> Iterator[dict[str, float]]:
    """Share of non-zero outputs of every ReLU and k-winners module that runs inside the block, by module name.

    The figures are there when the block ends.
    """
    counts: dict[str, list[int]] = {}
    activity: dict[str, float] = {}

    def count(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            entry = counts.setdefault(name, [0, 0])
            entry[0] += int(torch.count_nonzero(output))
            entry[1] += output.numel()

        return hook

    handles = [
        module.register_forward_hook(count(name))
        for name, module in ranker.named_modules()
        if isinstance(module, nn.ReLU | KWinners)
    ]
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()
        activity.update({name: active / max(total, 1) for name, (active, total) in counts.items()})
