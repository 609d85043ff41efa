"""The one interface of every lever of sparsity: what it does before, during and after training, and at export.

A lever is built from its config, sees the bare :class:`~models.ranker.Ranker` (the module inside
``DistributedModelParallel``), and may keep state that is saved with checkpoints. The trainer calls the hooks in the
order they are written here; ``shrink`` is called at export by a lever made anew from the config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights

State = dict[str, Any]


class LeverConfig(BaseModel):
    """Base of every lever's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
        """Dense gradients are there, the dense optimizer has not stepped. Fused tables have stepped already."""

    def after_step(self, ranker: Ranker, step: int) -> None:
        """The optimizer has stepped: proximal sweeps, masks, schedules."""

    def finish(self, ranker: Ranker) -> None:
        """After the last step: leave weights exactly as they are to be exported."""

    def shrink(self, weights: Weights) -> None:
        """At export: remove what is zero, choose bits. Must not change any logit, but by quantizing or factoring."""

    def state_dict(self) -> State:
        """Tensors and numbers that a resume needs, the same on every rank."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Inverse of :meth:`state_dict`; called between ``build`` and ``start``."""


def dense_weights(
    ranker: nn.Module, *, select: Sequence[str] = ()
) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """Weight matrices of the dense part: ``(module, attribute, full name, parameter)`` in a fixed order.

    Matrices and stacks of matrices only (at least two dimensions), without tables and routers: biases, norms and
    routers are a sliver of the bytes and steer everything else. ``select`` keeps names that start with one of its
    prefixes.
    """
    for path, module in ranker.named_modules():
        parts = path.split(".")
        if parts[0] == "tables" or "router" in parts:
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}" if path else attribute
            if parameter.dim() >= 2 and min(parameter.shape) > 1 and (not select or name.startswith(tuple(select))):
                yield module, attribute, name, parameter


def cubic(step: int, *, begin: int, end: int, final: float) -> float:
    """Share pruned at ``step``: 0 before ``begin``, ``final`` from ``end`` on, cubic between (1710.01878)."""
    if step < begin:
        return 0.0
    if step >= end:
        return final
    return final * (1.0 - (1.0 - (step - begin) / (end - begin)) ** 3)


def tensors(state: Mapping[str, Tensor]) -> State:
    """Detached copies on the CPU, ready for a checkpoint."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
