"""Weights of the losses of tasks that are learned with the model.

Letters: T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UncertaintyWeights(nn.Module):
    """One log variance per task, by which its loss is divided (Kendall, Gal and Cipolla, CVPR 2018, arXiv 1705.07115).

    A task with loss ``L`` and log variance ``s`` adds ``exp(-s) L + s / 2``, or ``exp(-s) L / 2 + s / 2`` if it is a
    regression: the negative log likelihood of its labels under a noise of this variance. Tasks that cannot be predicted
    well, or whose labels are large, come to weigh less. Each loss must be at least 0.

    Args:
        tasks: T.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.log_variance_T = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses_T: Tensor, factors_T: Tensor) -> Tensor:
        """(T,) what each task adds to the loss.

        Args:
            losses_T: Mean losses, from 0.
            factors_T: What :func:`likelihood_factors` gives, on the same device.
        """
        return factors_T * self.weights() * losses_T + self.log_variance_T / 2

    def weights(self) -> Tensor:
        """(T,) by how much the loss of each task is multiplied."""
        return (-self.log_variance_T).exp()


def likelihood_factors(kinds: Sequence[str]) -> Tensor:
    """(T,) the factor of each task's loss in the likelihood: 1/2 for squared errors, otherwise 1."""
    return torch.tensor([0.5 if kind == "regression" else 1.0 for kind in kinds])
