"""Rows sorted into groups, and the product of each group with its own matrix: the arithmetic of a sparse mixture.

Letters: N rows, K groups that a row is in, M slots (K for each row, and perhaps empty ones), E groups, I and O widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.products import product_into

_TALL = 512
_WASTE = 1.25
_STEP = 8


class Run(NamedTuple):
    """One group, or two that are multiplied as a batch, one thread each; ``height`` slots each."""

    groups: tuple[int, ...]
    slot: int
    height: int

    @property
    def end(self) -> int:
        return self.slot + len(self.groups) * self.height

    def rows(self, slots_MI: Tensor) -> Tensor:
        """(height, I), or of two groups (2, height, I)."""
        rows = slots_MI[self.slot : self.end]
        return rows if len(self.groups) == 1 else rows.view(2, self.height, slots_MI.shape[1])

    def weights(self, weight_EIO: Tensor) -> Tensor:
        """(I, O), or of two groups (2, I, O); always a view."""
        if len(self.groups) == 1:
            return weight_EIO[self.groups[0]]
        first, second = self.groups
        return weight_EIO[first : second + 1 : second - first]


def plan_runs(counts: Sequence[int]) -> list[Run]:
    """Runs for groups of so many rows: two groups of similar height share a run, padded to the taller.

    A group that is tall enough for all threads has a run of its own, and so does one that is similar to no other.
    Heights are rounded, because oneDNN compiles a kernel for every new shape.
    """
    runs: list[Run] = []
    left = sorted(range(len(counts)), key=counts.__getitem__)
    slot = 0
    while left:
        groups = [left.pop()]
        rows = counts[groups[0]]
        height = _padded(rows)
        if rows <= _TALL and left and 2 * height <= _WASTE * (rows + counts[left[-1]]):
            groups.append(left.pop())
        runs.append(Run(tuple(sorted(groups)), slot, height))
        slot = runs[-1].end
    return runs


def _one_by_one(counts: Sequence[int]) -> list[Run]:
    return [Run((i,), end - rows, rows) for i, (rows, end) in enumerate(zip(counts, accumulate(counts), strict=True))]


def _padded(rows: int) -> int:
    step = _STEP if rows <= _TALL else 2 * _STEP
    return -(-rows // step) * step


@dataclass(frozen=True)
class DispatchPlan:
    """Where each row goes: slots group by group.

    Attributes:
        source_M: The row in each slot; row 0 in empty slots.
        place_NK: The slots of each row.
        ends_E: End of each group, int32, if no slot is empty.
        runs: On the CPU: the groups that are multiplied together.
    """

    source_M: Tensor
    place_NK: Tensor
    ends_E: Tensor
    runs: Sequence[Run] | None

    def slots(self, values_NK: Tensor) -> Tensor:
        """(M,) values of rows and groups by slot; 0 in slots that are empty."""
        empty_M = values_NK.new_zeros(len(self.source_M))
        return empty_M.scatter(0, self.place_NK.flatten(), values_NK.flatten())


def plan_dispatch(group_NK: Tensor, counts_E: Tensor, *, pad: bool = False) -> DispatchPlan:
    """Slots for rows whose groups are known, and how many rows each group has.

    Args:
        pad: Leave slots empty if that makes products on the CPU faster.
    """
    order_M = _sort_keys(group_NK.flatten(), len(counts_E)).argsort(stable=True)
    slot_M = torch.arange(len(order_M), device=order_M.device)
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    runs, slots = None, len(order_M)
    if order_M.device.type == "cpu":
        runs = (plan_runs if pad else _one_by_one)(counts_E.tolist())
        slots = runs[-1].end
        starts_E = torch.empty_like(counts_E, dtype=torch.int64)
        starts_E[[group for run in runs for group in run.groups]] = torch.tensor(
            [run.slot + index * run.height for run in runs for index in range(len(run.groups))]
        )
        slot_M += (starts_E - ends_E + counts_E).repeat_interleave(counts_E, output_size=len(order_M))
    place_M = torch.empty_like(order_M).scatter_(0, order_M, slot_M)
    source_M = order_M.new_zeros(slots).scatter_(0, slot_M, order_M // group_NK.shape[1])
    return DispatchPlan(source_M, place_M.view_as(group_NK), ends_E, runs)


def _sort_keys(group_M: Tensor, groups: int) -> Tensor:
    """On a GPU, groups in the narrowest type: its radix sort takes one pass per byte of the keys."""
    if group_M.is_cuda:
        return group_M.to(torch.uint8 if groups <= 1 << 8 else torch.int16 if groups <= 1 << 15 else torch.int32)
    return group_M


def _apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """``function`` of ``arguments``, with the type that Torch's own signature lacks."""
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """Rows to all their slots; the backward pass gathers too and never scatters."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, source_M: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(source_M, place_NK)
        return x_NI.index_select(0, source_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        source_M, place_NK = ctx.saved_tensors
        return _apply(_Gather, grads[0], source_M, place_NK), None, None


class _Gather(torch.autograd.Function):
    """Sums over the slots of each row: the transpose of :class:`_Scatter`, but for empty slots."""

    @staticmethod
    def forward(ctx: Any, y_MI: Tensor, source_M: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(source_M, place_NK)
        if place_NK.shape[1] == 1:
            return y_MI.index_select(0, place_NK.flatten())
        if y_MI.is_cuda:  # bags took a quarter of a whole step there
            return y_MI.index_select(0, place_NK.flatten()).view(*place_NK.shape, -1).sum(1)
        starts_N = torch.arange(0, place_NK.numel(), place_NK.shape[1], device=place_NK.device)
        return F.embedding_bag(place_NK.flatten(), y_MI, starts_N, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        source_M, place_NK = ctx.saved_tensors
        return _apply(_Scatter, grads[0], source_M, place_NK), None, None


def dispatch(x_NI: Tensor, plan: DispatchPlan) -> Tensor:
    """(M, I) the row of each slot. Gradients of empty slots are ignored."""
    return _apply(_Scatter, x_NI, plan.source_M, plan.place_NK)


def combine(y_MI: Tensor, plan: DispatchPlan) -> Tensor:
    """(N, I) the sum over the slots of each row. Empty slots get the gradient of row 0: multiply them by 0 before."""
    return _apply(_Gather, y_MI, plan.source_M, plan.place_NK)


class _RunProducts(torch.autograd.Function):
    """Products run by run, in the dtype of the rows; weights and gradients are cast as needed."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_EIO: Tensor, runs: Sequence[Run]) -> Tensor:
        cast_EIO = torch.empty_like(weight_EIO, dtype=x_MI.dtype) if weight_EIO.dtype != x_MI.dtype else weight_EIO
        y_MO = x_MI.new_empty(len(x_MI), weight_EIO.shape[2])
        for run in runs:
            if cast_EIO is not weight_EIO:
                run.weights(cast_EIO).copy_(run.weights(weight_EIO))
            product_into(run.rows(x_MI), run.weights(cast_EIO), run.rows(y_MO))
        ctx.save_for_backward(x_MI, cast_EIO)
        ctx.runs, ctx.weight_dtype = runs, weight_EIO.dtype
        return y_MO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MI, cast_EIO = ctx.saved_tensors
        grad_MO = grads[0].contiguous()
        of_x = torch.empty_like(x_MI) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(cast_EIO, dtype=ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        for run in ctx.runs:
            x, grad = run.rows(x_MI), run.rows(grad_MO)
            if of_x is not None:
                product_into(grad, run.weights(cast_EIO).mT, run.rows(of_x))
            if of_weight is not None:
                _weight_product(x.mT, grad, run.weights(of_weight))
        return of_x, of_weight, None


def _weight_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """A batched product needs a contiguous target; single products avoid the copy, unless dtypes differ anyway."""
    if left.dtype != out.dtype:
        out.copy_(left @ right)
    elif left.dim() == 2:
        product_into(left, right, out)
    else:
        for pair in zip(left, right, out, strict=True):
            product_into(*pair)


def grouped_product(x_MI: Tensor, weight_EIO: Tensor, plan: DispatchPlan) -> Tensor:
    """(M, O) each slot times the matrix of its group, in the type of ``x_MI``; matrices may be of another."""
    if plan.runs is not None:
        return _apply(_RunProducts, x_MI, weight_EIO, plan.runs)
    # On a GPU, rows of matrices must begin at a multiple of 16 bytes; padding by zero columns would still copy.
    unit, (inputs, outputs) = 16 // x_MI.element_size(), weight_EIO.shape[1:]
    weight_EIO = weight_EIO.to(x_MI.dtype)
    if inputs % unit or outputs % unit:
        weight_EIO = F.pad(weight_EIO, (0, -outputs % unit, 0, -inputs % unit))
        x_MI = F.pad(x_MI, (0, -inputs % unit))
    return F.grouped_mm(x_MI, weight_EIO, offs=plan.ends_E)[:, :outputs]
