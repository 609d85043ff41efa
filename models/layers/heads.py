"""From what the tower made to one logit for each task, and the losses of the tasks.

Letters: B rows of a batch, D width of the enriched features, W width of the tower's output, T tasks.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

TaskKind = Literal["binary", "regression", "count"]


class TasksConfig(BaseModel):
    """How several tasks share the tower: ``model.tasks``.

    ``shared``: one tower, one head for each task. ``mmoe``: the tower's experts are common, each task routes its rows
    by itself (Multi-gate Mixture-of-Experts, KDD 2018). ``ple``: besides common experts each task has some of its own
    (Progressive Layered Extraction, RecSys 2020). The last two need a tower of kind ``moe``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["shared", "mmoe", "ple"] = "shared"


class Heads(nn.Module):
    """One linear head for each task, over the enriched features and the tower's output; in float32 always."""

    def __init__(self, features: int, tower: int, tasks: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features + tower, tasks)

    def forward(self, x_BD: Tensor, tower_BW: Tensor) -> Tensor:
        """(B, T); the tower may give each task rows of its own, (T, B, W)."""
        with torch.autocast(x_BD.device.type, enabled=False):
            feature_weight_TD, tower_weight_TW = self.linear.weight.tensor_split((self.features,), 1)
            tower_BW = tower_BW.float()
            if tower_BW.dim() == 3:
                tower_BT = torch.einsum("tbw,tw->bt", tower_BW, tower_weight_TW)
            else:
                tower_BT = F.linear(tower_BW, tower_weight_TW)
            return F.linear(x_BD.float(), feature_weight_TD, self.linear.bias) + tower_BT


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
