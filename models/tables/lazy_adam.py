"""Lazy Adam: it updates only the rows that are present in the batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LazyAdam(Optimizer):
    """Adam on the rows that the batch looked up: other rows keep weights and moments as they are.

    Plain Adam moves a rare row long after its last gradient, and weight decay shrinks it at every step. Here a row
    without a gradient does not change. Moments are corrected by the row's own number of updates. ``weight_decay`` is
    L2, on looked-up rows only. Parameters are (R, d).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, weight_Rd: Tensor, gradient_Rd: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[weight_Rd]
        if not state:
            state["exp_avg"] = torch.zeros_like(weight_Rd)
            state["exp_avg_sq"] = torch.zeros_like(weight_Rd)
            state["updates"] = weight_Rd.new_zeros(len(weight_Rd), 1)
        rows = gradient_Rd.abs().amax(1).nonzero().squeeze(1)
        first, second = group["betas"]
        weight, gradient = weight_Rd[rows], gradient_Rd[rows]
        gradient = gradient + group["weight_decay"] * weight
        updates = state["updates"][rows] + 1
        average = state["exp_avg"][rows].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"][rows].lerp_(gradient * gradient, 1 - second)
        corrected = (square / (1 - second**updates)).sqrt_().add_(group["eps"])
        weight_Rd[rows] = weight - group["lr"] * (average / (1 - first**updates)) / corrected
        state["exp_avg"][rows], state["exp_avg_sq"][rows], state["updates"][rows] = average, square, updates
