"""Sparse connectivity: training at a fixed density from the first step, and masks that never change.

RigL (Evci et al., 1911.11134) drops the smallest weights and grows those with the largest gradient; SET (Mocanu et al.,
1707.04780) grows at random. A fixed mask connects blocks on the diagonal, or each output to a window of neighbouring
inputs (a local receptive field).
"""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from models.sparsity.lever import Count, Density, Rate, Share
from models.sparsity.pruning.masks import MaskConfig, MaskLever

if TYPE_CHECKING:
    from models.ranker import Ranker


class DynamicSparseConfig(MaskConfig):
    """Train at a fixed density and move the connections while training.

    Attributes:
        density: Share of active weights at every step, spread over layers by Erdős-Rényi (small layers are denser).
        method: ``rigl`` grows by gradient, ``set`` at random.
        every: Steps between two moves.
        until: Share of all steps after which connections stay.
        fraction: Share of a layer's active weights that move at the first move; falls to 0 on a cosine.
        seed: Of the first masks and of random growth.
    """

    density: Density
    method: Literal["rigl", "set"] = "rigl"
    every: Count = 100
    until: Share = 0.75
    fraction: Rate = 0.3
    seed: int = 0


class DynamicSparse(MaskLever):
    """RigL, or SET, its random variant."""

    name: ClassVar[str] = "dynamic_sparse"

    def __init__(self, config: DynamicSparseConfig) -> None:
        super().__init__(config)
        self.config = config
        self._until = 0

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._until = int(self.config.until * total_steps)
        if not self._masks.masks:
            shapes = {name: weight.shape for name, weight in self._masks.weights(ranker).items()}
            densities = erdos_renyi(shapes, self.config.density)
            generator = torch.Generator().manual_seed(self.config.seed)
            for name, shape in shapes.items():
                alive = round(densities[name] * shape.numel())
                mask = torch.zeros(shape.numel(), dtype=torch.bool)
                mask[torch.randperm(len(mask), generator=generator)[:alive]] = True
                self._masks.masks[name] = mask.view(shape)
        self._masks.fill(ranker)
        self._masks.apply(ranker)

    def after_backward(self, ranker: "Ranker", step: int) -> None:
        if step > 0 and step % self.config.every == 0 and step < self._until:
            self._move(ranker, step)
        self._masks.apply_to_gradients(ranker)

    @torch.no_grad()
    def _move(self, ranker: "Ranker", step: int) -> None:
        share = self.config.fraction / 2 * (1 + math.cos(math.pi * step / self._until))
        generator = torch.Generator().manual_seed(self.config.seed + step)
        for name, weight in self._masks.weights(ranker).items():
            if weight.grad is None:
                continue
            growth = (
                weight.grad.abs() if self.config.method == "rigl" else torch.rand(weight.shape, generator=generator)
            )
            self._masks.masks[name] = moved(self._masks.masks[name], weight, growth.to(weight.device), share)


def moved(mask: Tensor, weight: Tensor, growth: Tensor, share: float) -> Tensor:
    """Drop the smallest ``share`` of the active weights; activate as many others, those with the largest ``growth``."""
    alive, total = int(mask.sum()), mask.numel()
    count = min(int(share * alive), total - alive)
    if count == 0:
        return mask
    dropped = torch.where(mask, weight.abs(), torch.inf).flatten().topk(count, largest=False).indices
    grown = torch.where(mask, -torch.inf, growth).flatten().topk(count).indices
    flat = mask.flatten().clone()
    flat[dropped] = False
    flat[grown] = True
    return flat.view_as(mask)


def erdos_renyi(shapes: dict[str, torch.Size], density: float) -> dict[str, float]:
    """Densities of layers, proportional to ``(inputs + outputs) / (inputs * outputs)``, that keep ``density`` overall.

    Layers whose density would exceed 1 are dense, and the others share the rest.
    """
    dense: set[str] = set()
    raw = {name: sum(shape[-2:]) / math.prod(shape[-2:]) for name, shape in shapes.items()}
    while True:
        free = [name for name in shapes if name not in dense]
        budget = density * sum(shape.numel() for shape in shapes.values()) - sum(shapes[name].numel() for name in dense)
        factor = budget / max(sum(raw[name] * shapes[name].numel() for name in free), 1e-12)
        over = {name for name in free if factor * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else factor * raw[name] for name in shapes}
        dense |= over


class FixedMaskConfig(MaskConfig):
    """Connect each layer by a pattern that never changes.

    Attributes:
        pattern: ``block`` (a block-diagonal of ``blocks`` blocks) or ``local`` (each output reads a window of inputs
            around its own place, ``1 / blocks`` of them).
        blocks: The density is ``1 / blocks``.
    """

    pattern: Literal["block", "local"] = "block"
    blocks: Count = 4


class FixedMask(MaskLever):
    """Block or local connectivity of the dense part."""

    name: ClassVar[str] = "fixed_mask"

    def __init__(self, config: FixedMaskConfig) -> None:
        super().__init__(config)
        self.config = config

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        for name, weight in self._masks.weights(ranker).items():
            self._masks.masks[name] = connectivity(weight.shape, self.config.pattern, self.config.blocks)
        self._masks.fill(ranker)
        self._masks.apply(ranker)

    def after_backward(self, ranker: "Ranker", step: int) -> None:
        self._masks.apply_to_gradients(ranker)


def connectivity(shape: torch.Size, pattern: Literal["block", "local"], blocks: int) -> Tensor:
    """A bool mask of ``shape`` whose last two dimensions are connected by ``pattern`` at density ``1 / blocks``."""
    rows, columns = shape[-2:]
    if pattern == "block":
        row_block = torch.arange(rows) * blocks // rows
        column_block = torch.arange(columns) * blocks // columns
        mask = row_block[:, None] == column_block[None, :]
    else:
        width = max(columns // blocks, 1)
        start = (torch.arange(rows) * (columns - width) // max(rows - 1, 1))[:, None]
        place = torch.arange(columns)[None, :]
        mask = (place >= start) & (place < start + width)
    return mask.expand(shape).clone()
