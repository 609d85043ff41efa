"""Standardization of dense features, so that all have the same scale.

Letters: B rows of a batch, D numbers of a row.
"""

import torch
from torch import Tensor

from models.layers.part import Part


class Standardize(Part):
    """``sign(x) log(1 + |x|)``, minus its mean, divided by its standard deviation in the training split.

    The logarithm hardly changes small values, and keeps large counts from dominating.
    """

    mean_D: Tensor
    deviation_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_width = width
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("deviation_D", torch.ones(width))

    @torch.no_grad()
    def learn(self, mean_D: Tensor, square_D: Tensor) -> None:
        """Set the scale from float64 means and mean squares of :func:`squash` of the training rows.

        A constant column keeps the deviation 1.
        """
        variance_D = square_D - mean_D.square()
        constant_D = variance_D <= 1e-12 * (1 + mean_D.square())
        self.mean_D.copy_(mean_D)
        self.deviation_D.copy_(variance_D.clamp(min=0).sqrt().masked_fill(constant_D, 1.0))

    def narrow_inputs(self, kept_D: Tensor) -> Tensor:
        self.mean_D, self.deviation_D = self.mean_D[kept_D], self.deviation_D[kept_D]
        self.out_width = len(kept_D)
        return kept_D

    def forward(self, dense_BD: Tensor) -> Tensor:
        return (squash(dense_BD) - self.mean_D) / self.deviation_D


def squash(dense_BD: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)``."""
    return dense_BD.sign() * dense_BD.abs().log1p()
