"""Batch normalization of the row that a ranker reads.

Letters: B rows of a batch, D width of the row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.part import Part

_MOMENTUM = 0.1
_EPS = 1e-5


class BatchNorm(Part):
    """Every column has mean 0 and variance 1 over the batch (Ioffe & Szegedy, arXiv 1502.03167), then scale and shift.

    The layers after it do not see how large embeddings are, so strong weight decay can keep them small: embeddings of
    rare ids then contribute little. When serving, running means and variances replace those of the batch.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_width = width
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    @property
    def narrows_inputs(self) -> bool:
        return False  # a column of zeros becomes its shift

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) float32."""
        training = self.training and len(x_BD) > 1
        return F.batch_norm(
            x_BD.float(), self.running_mean, self.running_var, self.weight, self.bias, training, _MOMENTUM, _EPS
        )
