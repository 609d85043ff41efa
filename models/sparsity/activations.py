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

from models.layers.activations import KWinners
from models.sparsity.lever import Density, Lever, LeverConfig, Rate, dense_weights
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
    """Dropout on weights. It saves nothing at export by itself, but the network then loses less when it is pruned."""

    name: ClassVar[str] = "dropconnect"

    def __init__(self, config: DropConnectConfig) -> None:
        self.config = config

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        for module, attribute, _, _ in list(dense_weights(ranker, select=self.config.layers)):
            transform_weight(module, attribute, partial(self._drop, module))

    def _drop(self, module: nn.Module, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, self.config.rate, module.training)


class KWinnersConfig(LeverConfig):
    """Let only the largest units of every hidden layer pass; sets ``model.tower.k_winners``.

    Attributes:
        density: Share of a layer's units that pass.
    """

    density: Density


@contextmanager
def measure_activity(ranker: nn.Module) -> Iterator[dict[str, float]]:
    """Share of non-zero outputs of every ReLU and k-winners module that runs inside the block, by module name.

    The values are complete when the block ends.
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
