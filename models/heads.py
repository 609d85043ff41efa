"""From what the tower made to one logit for each task, and the losses of the tasks.

Letters: B rows of a batch, D width of the head's input, T tasks.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

TaskKind = Literal["binary", "regression", "count"]


class TasksConfig(BaseModel):
    """How several tasks share the tower: ``model.tasks``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["shared", "mmoe", "ple"] = "shared"


class Heads(nn.Module):
    """One linear head for each task."""

    def __init__(self, config: TasksConfig, width: int, tasks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, tasks)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, T) float32."""
        return cast(Tensor, self.linear(x_BD).float())


def task_losses(logits_BT: Tensor, labels_BT: Tensor, kinds: Sequence[TaskKind]) -> Tensor:
    """(T,) mean loss of each task over the rows that have a label; 0 for a task without any in this batch.

    Binary: cross entropy of the logit. Regression: squared error. Count: Poisson likelihood of exp(logit).
    A missing label is NaN; it adds nothing to the loss nor to any gradient.
    """
    present_BT = ~labels_BT.isnan()
    labels_BT = torch.where(present_BT, labels_BT, 0.0)
    logits_BT = logits_BT.float()
    losses: dict[TaskKind, Callable[..., Tensor]] = {
        "binary": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
        "count": F.poisson_nll_loss,
    }
    per_row_BT = torch.stack(
        [
            losses[kind](logits_B, labels_B, reduction="none")
            for kind, logits_B, labels_B in zip(kinds, logits_BT.unbind(1), labels_BT.unbind(1), strict=True)
        ],
        1,
    )
    return torch.where(present_BT, per_row_BT, 0.0).sum(0) / present_BT.sum(0).clamp(min=1)
