"""Activations of hidden layers: ReLU, or only the largest units of a layer.

Letters: B rows, H units of a layer.
"""

import torch
from torch import Tensor, nn


def activation(units: int, k_winners: float | None) -> nn.Module:
    """ReLU, or with ``k_winners`` the activation that lets this share of the units pass."""
    return nn.ReLU(inplace=True) if k_winners is None else KWinners(units, k_winners)


class KWinners(nn.Module):
    """Top-k activation over the last dimension (after ReLU), with boosting by duty cycle while training.

    (Ahmad & Scheinkman, arXiv 1903.11257.)

    Args:
        density: Share of units that pass; ``k = max(1, round(density * units))``.
        boost: Units are ranked by ``x * exp(boost * (density - duty))`` while training, ``duty`` being the running
            share of rows in which a unit won.
    """

    duty_H: Tensor

    def __init__(self, units: int, density: float, *, boost: float = 0.5) -> None:
        super().__init__()
        self.density, self.boost = density, boost
        self.k = max(1, round(density * units))
        self.register_buffer("duty_H", torch.full((units,), density))

    def narrowed(self, units: int) -> "KWinners":
        """Keep the number of winners (or all units, if there are fewer) among fewer units; duty cycles are reset."""
        return KWinners(units, min(1.0, self.k / units), boost=self.boost)

    def forward(self, x_BH: Tensor) -> Tensor:
        x_BH = x_BH.relu()
        ranked_BH = x_BH.detach()
        if self.training and self.boost:
            ranked_BH = ranked_BH * torch.exp(self.boost * (self.density - self.duty_H))
        winners_Bk = ranked_BH.topk(self.k, dim=-1).indices
        mask_BH = torch.zeros_like(x_BH).scatter_(-1, winners_Bk, 1.0)
        if self.training:
            share_H = (mask_BH * (x_BH > 0)).flatten(0, -2).mean(0, dtype=self.duty_H.dtype)
            self.duty_H.lerp_(share_H.detach(), 0.01)
        return x_BH * mask_BH
