"""Two-layer ReLU experts on a GPU as few kernels: rows are gathered by the first product and gated by the second.

Forward: ``hidden = relu(x[source] @ w1)``, ``y = combine(gate * (hidden @ w2))``. The backward pass has three more
products and two that sum over rows. Slots are not copied, except for the hidden layer and one output per slot; the CPU
never waits. The plain form is ``dispatch``, two grouped products and ``combine`` (``models.moe.dispatch``).

Letters: N rows, D width of the model, H hidden width, E experts, K experts of a row, M slots.
"""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.moe.dispatch import DispatchPlan, grouped_product

VARIABLE = "RECSYS_TRITON"

_DTYPES = torch.float32, torch.bfloat16, torch.float16


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def can_fuse(x: Tensor) -> bool:
    """Whether Triton kernels compute on ``x``: on a GPU, with Triton, where ``RECSYS_TRITON=1`` asks for them.

    They have been checked in Triton's interpreter but not yet on a GPU, so they are not the default.
    """
    return x.is_cuda and x.dtype in _DTYPES and os.environ.get(VARIABLE) == "1" and _has_triton()


def _kernels() -> Any:
    """The module of kernels, imported where it is used: it needs Triton."""
    return import_module("models.moe.triton_kernels")


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, gates_NK: Tensor, w1_EDH: Tensor, w2_EHD: Tensor, plan: DispatchPlan) -> Tensor:
        kernels, gates_M = _kernels(), plan.slots(gates_NK)
        x_ND, first_EDH, second_EHD = x_ND.contiguous(), w1_EDH.to(x_ND.dtype), w2_EHD.to(x_ND.dtype)
        hidden_MH = kernels.product(x_ND, first_EDH, plan.ends_E, source_M=plan.source_M, relu=True)
        y_MD = kernels.product(hidden_MH, second_EHD, plan.ends_E, gates_M=gates_M)
        ctx.save_for_backward(x_ND, gates_M, first_EDH, second_EHD, hidden_MH)
        ctx.plan, ctx.dtypes = plan, (gates_NK.dtype, w1_EDH.dtype, w2_EHD.dtype)
        return cast(Tensor, kernels.combine(y_MD, plan.place_NK))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernels, plan = _kernels(), ctx.plan
        x_ND, gates_M, first_EDH, second_EHD, hidden_MH = ctx.saved_tensors
        grad_ND, source_M, ends_E = grads[0].contiguous(), plan.source_M, plan.ends_E
        inner_MH, gated_MH, gate_grad_M = kernels.hidden_gradients(
            grad_ND, source_M, second_EHD, ends_E, gates_M, hidden_MH
        )
        gates_dtype, first_dtype, second_dtype = ctx.dtypes
        of_x = of_gates = of_first = of_second = None
        if ctx.needs_input_grad[0]:
            of_x = kernels.combine(kernels.product(inner_MH, first_EDH.mT, ends_E), plan.place_NK)
        if ctx.needs_input_grad[1]:
            of_gates = gate_grad_M[plan.place_NK].to(gates_dtype)
        if ctx.needs_input_grad[2]:
            of_first = kernels.weight_product(x_ND, inner_MH, ends_E, left_source_M=source_M).to(first_dtype)
        if ctx.needs_input_grad[3]:
            of_second = kernels.weight_product(gated_MH, grad_ND, ends_E, right_source_M=source_M).to(second_dtype)
        return of_x, of_gates, of_first, of_second, None


def fused_experts(x_ND: Tensor, gates_NK: Tensor, w1_EDH: Tensor, w2_EHD: Tensor, plan: DispatchPlan) -> Tensor:
    """(N, D) the sum over each row's experts of gate x output, in the type of ``x_ND``.

    Args:
        x_ND: float32, bfloat16 or float16; float32 products use TF32 if Torch allows it.
        gates_NK: Of any dtype.
        w1_EDH: First layers; cast to the dtype of ``x_ND``.
        w2_EHD: Second layers, likewise.
        plan: Without empty slots.
    """
    return cast(Tensor, _Experts.apply(x_ND, gates_NK, w1_EDH, w2_EHD, plan))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
        x_MI, cast_EIO = x_MI.contiguous(), weight_EIO.to(x_MI.dtype)
        ctx.save_for_backward(x_MI, cast_EIO, ends_E)
        ctx.weight_dtype = weight_EIO.dtype
        return cast(Tensor, _kernels().product(x_MI, cast_EIO, ends_E))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MI, cast_EIO, ends_E = ctx.saved_tensors
        kernels, grad_MO = _kernels(), grads[0].contiguous()
        of_x = kernels.product(grad_MO, cast_EIO.mT, ends_E) if ctx.needs_input_grad[0] else None
        of_weight = kernels.weight_product(x_MI, grad_MO, ends_E) if ctx.needs_input_grad[1] else None
        return of_x, None if of_weight is None else of_weight.to(ctx.weight_dtype), None


def product(x_MI: Tensor, weight_EIO: Tensor, plan: DispatchPlan) -> Tensor:
    """:func:`~models.moe.dispatch.grouped_product`, by Triton for types that Torch computes group by group on a GPU."""
    if x_MI.dtype == torch.bfloat16 or not can_fuse(x_MI):
        return grouped_product(x_MI, weight_EIO, plan)
    return cast(Tensor, _Product.apply(x_MI, weight_EIO, plan.ends_E))  # type: ignore[no-untyped-call]
