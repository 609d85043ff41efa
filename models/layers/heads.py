"""Heads, which turn the tower's output into one logit per task, and the losses of the tasks.

Letters: B rows of a batch, D width of the enriched features, W width of the tower's output, T tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from data_pipelines.config.base import Config
from data_pipelines.errors import UserError
from models.layers.int8 import Int8Linear
from models.layers.outcomes.ordinal import OrdinalTasks
from models.layers.part import Int8Input, Part, UnitSlice, narrow_linear
from models.products import Linear, linear

TaskKind = Literal["binary", "regression", "count", "duration", "ordinal"]


@dataclass(frozen=True)
class TaskRouting:
    """How tasks route rows to experts.

    Attributes:
        tasks: With several, each routes its own copy of the rows with weights of its own (MMoE, KDD 2018).
        own_experts: Experts are assigned to ``tasks + 1`` groups round-robin; a task chooses from the first group and
            from its own (PLE, RecSys 2020).
    """

    tasks: int = 1
    own_experts: bool = False


_ROUTING = {"shared": (False, False), "mmoe": (True, False), "ple": (True, True)}


class TasksConfig(Config):
    """How several tasks share the tower: ``model.tasks``.

    ``shared``: one tower, one head for each task. ``mmoe``: all tasks share the experts, and each task routes its
    rows itself (Multi-gate Mixture-of-Experts, KDD 2018). ``ple``: each task also has experts of its own (Progressive
    Layered Extraction, RecSys 2020). The last two need a tower of kind ``moe``.
    """

    kind: Literal["shared", "mmoe", "ple"] = Field(default="shared", description="What the tasks share.")
    weights: Literal["fixed", "uncertainty"] = Field(
        default="fixed",
        description="`uncertainty`: the weights of the losses of tasks are learned (see "
        "`models.layers.outcomes.task_weights.UncertaintyWeights`), and multiply `weight` of each task.",
    )

    @property
    def routes_by_task(self) -> bool:
        """Whether each task routes its rows itself."""
        return _ROUTING[self.kind][0]

    def routing(self, tasks: int) -> TaskRouting:
        """How so many tasks route.

        Raises:
            UserError: A single task has nothing to share.
        """
        by_task, own_experts = _ROUTING[self.kind]
        if by_task and tasks == 1:
            raise UserError(
                f"model.tasks.kind {self.kind!r} is for several tasks and data.tasks has one: set it to 'shared'."
            )
        return TaskRouting(tasks if by_task else 1, own_experts)


class Heads(Part):
    """One linear head per task, over the enriched features and the tower's output; always in float32.

    Args:
        features: D.
        tower: W.
        tasks: T.
    """

    def __init__(self, features: int, tower: int, tasks: int) -> None:
        super().__init__()
        self.features = features
        self.out_width = tasks
        self.linear = Linear(features + tower, tasks)

    def forward(self, x_BD: Tensor, tower_BW: Tensor) -> Tensor:
        """(B, T); the tower may give each task rows of its own, (T, B, W)."""
        with torch.autocast(x_BD.device.type, enabled=False):
            feature_weight_TD, tower_weight_TW = self.linear.weight.tensor_split((self.features,), 1)
            tower_BW = tower_BW.float()
            if tower_BW.dim() == 3:
                tower_BT = torch.einsum("tbw,tw->bt", tower_BW, tower_weight_TW)
            else:
                tower_BT = linear(tower_BW, tower_weight_TW)
            return linear(x_BD.float(), feature_weight_TD, self.linear.bias) + tower_BT

    def tower_readers(self) -> tuple[UnitSlice, ...]:
        """The slices of the head's matrix that read the tower's output."""
        return (UnitSlice(self.linear, "weight", 1, self.features),)

    def narrow(self, *, features: Tensor | None = None, tower: Tensor | None = None) -> None:
        """Keep only these positions of the enriched features and of the tower's output; all where ``None``."""
        every = torch.arange(self.linear.in_features)
        kept_D = every[: self.features] if features is None else features
        kept_W = every[self.features :] if tower is None else tower + self.features
        narrow_linear(self.linear, inputs=torch.cat([kept_D, kept_W]))
        self.features = len(kept_D)

    def int8_inputs(self, path: str) -> list[Int8Input]:
        """The tower's output, the only input that is rounded."""
        return [Int8Input(f"{path}.linear", self, 1)]

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "Part":
        return Int8Heads(self, grids[f"{path}.linear"])


class Int8Heads(Part):
    """:class:`Heads` with the part that reads the tower in int8."""

    weight_TD: Tensor

    def __init__(self, heads: Heads, grid_2W: Tensor) -> None:
        super().__init__()
        self.out_width = heads.out_width
        feature_weight_TD, tower_weight_TW = heads.linear.weight.tensor_split((heads.features,), 1)
        self.register_buffer("weight_TD", feature_weight_TD.contiguous())
        self.tower = Int8Linear(tower_weight_TW, heads.linear.bias, grid_2W)

    def forward(self, x_BD: Tensor, tower_BW: Tensor) -> Tensor:
        """(B, T) float32."""
        with torch.autocast(x_BD.device.type, enabled=False):
            tower_BT: Tensor = self.tower(tower_BW)
            return tower_BT + linear(x_BD.float(), self.weight_TD)


def task_losses(
    logits_BT: Tensor,
    labels_BT: Tensor,
    kinds: Sequence[TaskKind],
    weights_BT: Tensor | None = None,
    *,
    ordinal: OrdinalTasks | None = None,
) -> Tensor:
    """(T,) mean loss of each task over the rows that have a label; 0 for a task without any in this batch.

    With ``weights_BT`` the loss of each row is multiplied by its weight; the mean is still over the number of rows,
    so that a batch of rows with large weights moves the model more than one with small weights.

    Binary: cross entropy of the logit. Regression: squared error. Count: half the Poisson deviance of exp(logit).
    Duration: see :func:`weighted_logistic`. Ordinal: the negative log likelihood of the level, of a ranker in training
    mode, whose latent scores ``ordinal`` cuts into levels; without ``ordinal``, of a ranker in evaluation mode, the
    squared error of the expected level. All are at least 0. A missing label is NaN; it adds nothing to the loss nor to
    any gradient.
    """
    losses = [_LOSSES[kind] for kind in kinds]
    if ordinal is not None:
        for t, levels in ordinal.parts.items():
            losses[t] = levels.losses
    present_BT = ~labels_BT.isnan()
    labels_BT = torch.where(present_BT, labels_BT, 0.0)
    logits_BT = logits_BT.float()
    per_row_BT = torch.stack(
        [
            loss(logits_B, labels_B)
            for loss, logits_B, labels_B in zip(losses, logits_BT.unbind(1), labels_BT.unbind(1), strict=True)
        ],
        1,
    )
    if weights_BT is not None:
        per_row_BT = per_row_BT * weights_BT
    return torch.where(present_BT, per_row_BT, 0.0).sum(0) / present_BT.sum(0).clamp(min=1)


def weighted_logistic(logits_B: Tensor, amounts_B: Tensor) -> Tensor:
    """The loss of amounts from 0, such as seconds watched, whose expected value is the odds ``exp(logit)``.

    Each row counts once as a negative, and as many times as a positive as its amount says. The odds of positives are
    then the expected amount exactly. (In Covington et al., RecSys 2016, a row with an amount does not count as a
    negative, so the odds are the expected amount only where few rows have one.)

    Args:
        logits_B: The log of the expected amount.
        amounts_B: From 0.
    """
    return amounts_B * F.softplus(-logits_B) + F.softplus(logits_B)


def _half_poisson_deviance(logits_B: Tensor, counts_B: Tensor) -> Tensor:
    best_B = torch.xlogy(counts_B, counts_B) - counts_B
    return F.poisson_nll_loss(logits_B, counts_B, reduction="none") + best_B


_LOSSES: dict[TaskKind, Callable[[Tensor, Tensor], Tensor]] = {
    "binary": partial(F.binary_cross_entropy_with_logits, reduction="none"),
    "regression": partial(F.mse_loss, reduction="none"),
    "count": _half_poisson_deviance,
    "duration": weighted_logistic,
    "ordinal": partial(F.mse_loss, reduction="none"),
}
