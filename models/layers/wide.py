"""The wide part: a linear model of ids and numbers, added to the logits of the deep part.

Letters: B rows of a batch, D width of the dense features, T tasks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.layers.part import Int8Input, Part, narrow_linear


class Wide(Part):
    """One weight per id, looked up with the tables, a weight per dense column, and a bias; all start from zero.

    With it the ranker contains linear and logistic regression (Wide & Deep, arXiv 1606.07792), from whose weights it
    can start (``train.start: linear``).

    Args:
        dense: D.
        tasks: T.
    """

    def __init__(self, dense: int, tasks: int) -> None:
        super().__init__()
        self.out_width = tasks
        self.linear = nn.Linear(dense, tasks, bias=False) if dense else None
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, wide: dict[str, Tensor], dense_BD: Tensor) -> Tensor:
        """(B, T); one sum over the ids for all tasks, in float32."""
        logits_BT = self.bias.expand(len(dense_BD), -1)
        if wide:
            logits_BT = logits_BT + torch.cat(list(wide.values()), 1).sum(1, keepdim=True)
        if self.linear is not None:
            with torch.autocast(dense_BD.device.type, enabled=False):
                logits_BT = logits_BT + self.linear(dense_BD.float())
        return logits_BT

    @property
    def narrows_inputs(self) -> bool:
        return True

    def narrow_inputs(self, kept_D: Tensor) -> None:
        if self.linear is not None:
            narrow_linear(self.linear, inputs=kept_D)

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return []  # it is too small to gain by int8

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "Wide":
        return self
