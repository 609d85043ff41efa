"""The interface of levers of sparsity: hooks before, during and after training, and at export.

A lever is built from its config, sees the bare :class:`~models.ranker.Ranker` (the module inside
``DistributedModelParallel``), and may keep state that is saved with checkpoints. The trainer calls the hooks in the
order of this file; ``shrink`` is called at export on a new lever that is built from the config.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, model_validator
from torch import Tensor, nn

from data_pipelines.config.base import Config
from models.moe.router import routers

if TYPE_CHECKING:
    from data_pipelines.batch import Batch
    from models.layers.heads import TaskKind
    from models.ranker import Ranker
    from models.weights import Weights

State = dict[str, Any]


class LeverConfig(Config):
    """Base of every lever's settings."""


def _within(low: float, high: float, *, low_too: bool, high_too: bool) -> AfterValidator:
    """A validator that names the allowed range when a number is outside it."""
    bounds = f"{low:g} {'' if low_too else '(excluded) '}to {high:g}{'' if high_too else ' (excluded)'}"

    def check(value: float) -> float:
        inside = (value >= low if low_too else value > low) and (value <= high if high_too else value < high)
        if not inside:
            raise ValueError(f"{value:g} is outside the allowed range, {bounds}")
        return value

    return AfterValidator(check)


Share = Annotated[float, _within(0, 1, low_too=True, high_too=True)]
"""From 0 to 1: a point in training, as a share of all steps."""
Sparsity = Annotated[float, _within(0, 1, low_too=True, high_too=False)]
"""The share that is removed; 1 would leave nothing."""
Density = Annotated[float, _within(0, 1, low_too=False, high_too=True)]
"""Share of what is left."""
Rate = Annotated[float, _within(0, 1, low_too=False, high_too=False)]
"""Strictly between 0 and 1."""
Strength = Annotated[float, _within(0, float("inf"), low_too=True, high_too=False)]
"""The strength of a penalty or of a step: not negative."""
Step = Annotated[float, _within(0, 4, low_too=False, high_too=True)]
"""Distance of neighbouring codes as a multiple of the root mean square; above 4 nearly everything becomes zero."""
Count = Annotated[int, _within(1, 2**31, low_too=True, high_too=True)]
"""At least 1."""


class Schedule(LeverConfig):
    """When sparsity rises, as shares of all steps; with ``begin`` equal to ``end``, pruning is done in one step.

    Attributes:
        begin: Nothing is removed before this point.
        end: The final sparsity is reached here; the rest of training is fine-tuning. Early stopping only chooses among
            epochs after it, so set it before the epoch that is the best without the lever.
        every: Steps between two removals.
    """

    begin: Share = 0.05
    end: Share = 0.3
    every: Count = 50

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin > self.end:
            raise ValueError(f"begin={self.begin:g} must be between 0 and end={self.end:g}")
        return self

    def steps(self, total: int) -> Ramp:
        """The schedule in steps of a training of ``total`` steps."""
        return Ramp(int(self.begin * total), min(int(self.end * total), max(total - 1, 0)), self.every)


class Penalty(LeverConfig):
    """Base of levers that shrink weights all through training.

    Attributes:
        settle: Share of all steps before which weights cannot be the best of a run, because sparsity has to grow first.
    """

    settle: Share = 0.5


@dataclass(frozen=True)
class Ramp:
    """A cubic rise of sparsity between two steps (Zhu & Gupta, 1710.01878)."""

    begin: int
    end: int
    every: int

    def due(self, step: int) -> bool:
        """Whether sparsity rises at ``step``."""
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)

    def share(self, step: int) -> float:
        """Share of the final sparsity that is reached at ``step``."""
        if step >= self.end:
            return 1.0
        return 0.0 if step < self.begin else 1.0 - (1.0 - (step - self.begin) / (self.end - self.begin)) ** 3


class Lever:
    """One technique of sparsity that can be switched on, combined with others, and measured."""

    name: ClassVar[str]

    def build(self, ranker: Ranker) -> None:
        """Before sharding: swap or wrap modules, add parameters."""

    def start(self, ranker: Ranker, total_steps: int) -> None:
        """After sharding and before the first step (or the first step after a resume)."""

    def loss(self, ranker: Ranker) -> Tensor | None:
        """A scalar added to the training loss, or ``None``."""
        return None

    def after_backward(self, ranker: Ranker, step: int) -> None:
        """Called when dense gradients exist and the dense optimizer has not stepped. Fused tables have stepped."""

    def after_step(self, ranker: Ranker, step: int) -> None:
        """Called after the optimizer has stepped: proximal sweeps, masks, schedules."""

    def settled(self, step: int) -> bool:
        """Whether the lever has reached its goal after ``step`` steps: only then can weights be the best of a run."""
        return True

    def finish(self, ranker: Ranker) -> None:
        """After training, on the final weights (the best, or averaged): make them what is exported.

        Masks are applied once more, because averages are never exactly zero; modules that :meth:`build` added to the
        ranker are folded into ordinary weights and removed.
        """

    def calibrate(self, weights: Weights, batches: Iterable[Batch], kinds: Sequence[TaskKind]) -> None:
        """At export, before :meth:`shrink`: read rows of the valid split, whose tasks are of these ``kinds``."""

    def shrink(self, weights: Weights) -> None:
        """At export: remove zeros, choose bits. Only quantizing and factoring may change logits."""

    def state_dict(self) -> State:
        """Tensors and numbers that a resume needs, the same on every rank."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Inverse of :meth:`state_dict`; called between ``build`` and ``start``."""


def dense_weights(ranker: Ranker, *, select: Sequence[str] = ()) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """Weight matrices of the dense part: ``(module, attribute, full name, parameter)`` in a fixed order.

    Only matrices and stacks of matrices (at least two dimensions), without tables and routers: biases, norms and
    routers take few bytes and affect everything else. ``select`` keeps names that start with one of its prefixes.
    """
    left_out = {*ranker.tables.modules(), *routers(ranker).values()}
    for path, module in ranker.named_modules():
        if module in left_out:
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}" if path else attribute
            if parameter.dim() >= 2 and min(parameter.shape) > 1 and (not select or name.startswith(tuple(select))):
                yield module, attribute, name, parameter


def tensors(state: Mapping[str, Tensor]) -> State:
    """Detached copies on the CPU, ready for a checkpoint."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
