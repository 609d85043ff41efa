"""Tasks of ordered levels, such as stars: one latent score per row, and thresholds that cut it into levels.

The proportional odds model (McCullagh, "Regression models for ordinal data", JRSS B 1980): the probability that a label
is above level k is ``sigmoid(z - threshold_k)`` for the latent score ``z``. The thresholds are learned and stay in
order, so that no level has a negative probability.

Letters: B rows of a batch, T tasks, K levels of a task.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_SHARE = 1e-4
"""At the start no level is taken to be rarer, so that thresholds are finite and apart."""


class OrdinalLevels(nn.Module):
    """The levels of one task and the thresholds between them.

    Args:
        levels: K values in ascending order.

    Example:
        >>> stars = OrdinalLevels([1, 2, 3, 4, 5])
        >>> stars.start_at([0.1, 0.1, 0.2, 0.3, 0.3])
        >>> round(float(stars.expected(torch.tensor(0.0))), 3)  # the mean of these shares
        3.6
    """

    levels_K: Tensor

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("levels_K", torch.tensor(levels, dtype=torch.float32), persistent=False)
        self.first = nn.Parameter(torch.zeros(1))
        self.gaps = nn.Parameter(torch.zeros(len(levels) - 2))
        self.start_at([1 / len(levels)] * len(levels))

    def thresholds(self) -> Tensor:
        """(K - 1,) in ascending order; label k + 1 and above are beyond the threshold k."""
        return torch.cat([self.first, self.first + F.softplus(self.gaps).cumsum(0)])

    @torch.no_grad()
    def start_at(self, shares_K: Sequence[float]) -> None:
        """Set the thresholds with which a latent score of 0 gives the levels these shares."""
        share_K = torch.tensor(shares_K, dtype=torch.float64).clamp(min=_LEAST_SHARE)
        above_K = (share_K / share_K.sum()).flip(0).cumsum(0).flip(0)[1:]
        thresholds = -torch.logit(above_K)
        self.first.copy_(thresholds[:1])
        self.gaps.copy_(torch.expm1(thresholds.diff()).log())  # the inverse of softplus

    def expected(self, latent_B: Tensor) -> Tensor:
        """(B,) the expected level: the lowest one, and each step up times the probability to be above it."""
        above_BK = torch.sigmoid(latent_B[..., None] - self.thresholds())
        return self.levels_K[0] + above_BK @ self.levels_K.diff()

    def losses(self, latent_B: Tensor, labels_B: Tensor) -> Tensor:
        """(B,) the negative log likelihood of each label.

        With the threshold ``a`` below a level and ``b`` above it, the probability ``sigmoid(b - z) - sigmoid(a - z)``
        is ``sigmoid(b - z) sigmoid(z - a) (1 - exp(a - b))``, which is exact for scores of any size.

        Args:
            labels_B: Values of the levels.
        """
        at_B = (labels_B[:, None] >= self.levels_K[1:]).sum(1)
        edge, threshold_K = self.first.new_full((1,), math.inf), self.thresholds()
        below_K, above_K = torch.cat([-edge, threshold_K]), torch.cat([threshold_K, edge])
        inside_K = F.pad((-torch.expm1(threshold_K[:-1] - threshold_K[1:])).log(), (1, 1))
        likelihood_B = F.logsigmoid(above_K[at_B] - latent_B) + F.logsigmoid(latent_B - below_K[at_B])
        return -(likelihood_B + inside_K[at_B])


class OrdinalTasks(nn.Module):
    """The ordinal tasks among the columns of a ranker.

    Args:
        levels: By column, the K values of a task's levels in ascending order.
    """

    def __init__(self, levels: Mapping[int, Sequence[float]]) -> None:
        super().__init__()
        self.columns = list(levels)
        self.tasks = nn.ModuleList(OrdinalLevels(levels_K) for levels_K in levels.values())

    @property
    def parts(self) -> Mapping[int, OrdinalLevels]:
        """By column, the levels of the task and its thresholds."""
        return dict(zip(self.columns, cast(Iterable[OrdinalLevels], self.tasks), strict=True))

    def forward(self, latent_BT: Tensor) -> Tensor:
        """(B, T) with expected levels in place of the latent scores of ordinal tasks."""
        columns = list(latent_BT.float().unbind(1))
        for t, levels in self.parts.items():
            columns[t] = levels.expected(columns[t])
        return torch.stack(columns, 1)
