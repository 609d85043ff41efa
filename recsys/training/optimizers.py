"""The optimizer of the dense part, the learning-rate schedule over all optimizers, and averaged weights."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from models.moe.expert_parallel import by_placement
from recsys.config.experiment import DenseOptimizer, ScheduleKind


def make_optimizer(
    name: DenseOptimizer, parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> Optimizer:
    """The dense optimizer of that name; ``weight_decay`` is decoupled for ``adamw`` and L2 for all others."""
    groups = [{"params": group} for group in by_placement(parameters)]
    match name:
        case "adamw":
            return AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
        case "adam":
            return Adam(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
        case "adagrad":
            return Adagrad(groups, lr=learning_rate, weight_decay=weight_decay)
        case "sgd":
            return SGD(groups, lr=learning_rate, weight_decay=weight_decay)


def schedule_factor(kind: ScheduleKind, step: int, warmup: int, total: int) -> float:
    """Factor on every learning rate at ``step`` (from 0): linear warm-up, then constant or falling towards zero."""
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class AveragedWeights:
    """Exponential moving average of tensors that are updated in place.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the first steps are forgotten.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [self.average[name] for name in tensors]
        torch._foreach_lerp_(averages, [tensor.detach() for tensor in tensors.values()], 1 - decay)

    @torch.no_grad()
    def swap(self, tensors: Mapping[str, Tensor]) -> None:
        """Exchange the averages with the live values; a second call undoes the first."""
        for name, tensor in tensors.items():
            live = tensor.detach().clone()
            tensor.detach().copy_(self.average[name])
            self.average[name].copy_(live)
