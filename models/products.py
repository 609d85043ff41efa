"""Matrix products in float32, with the faster of the two libraries that come with Torch on a CPU: MKL and oneDNN.

``F.linear`` in float32 calls MKL, which uses the AVX-512 units of Intel's processors only. A training step of a tower
of 416-400-400-256 is 2.4 times faster with oneDNN on an AMD EPYC with AVX-512, and a tenth slower on one with only
AVX2; on an Intel Xeon the gradient of a weight takes up to four times as long. The precision is the same; sums are
added in a different order.

The library is chosen by the processor and not by a timing, so that all trainings on one machine, resumed ones included,
use the same library. ``RECSYS_MATMUL=mkl`` or ``=onednn`` chooses it instead; ``recsys doctor`` measures
both.

Letters: N rows, I columns that enter a matrix, O columns that leave it.
"""

import os
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from data_pipelines.errors import UserError

Library = Literal["mkl", "onednn"]
VARIABLE = "RECSYS_MATMUL"

_SHORTEST_SIDE = 16
"""A product with a shorter side than this is bound by memory, and MKL's kernels for vectors are faster."""


@cache
def library() -> Library:
    """The library that computes large float32 products on the CPU of this process.

    Raises:
        UserError: The environment variable ``RECSYS_MATMUL`` names no library, or oneDNN where Torch was built without.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in get_args(Library):
        raise UserError(f"the environment variable {VARIABLE} is {wanted!r}: set it to 'mkl' or 'onednn', or unset it.")
    if wanted == "onednn" and not _is_built(torch.backends.mkldnn):
        raise UserError(f"the environment variable {VARIABLE} is 'onednn', and this Torch has no oneDNN: unset it.")
    return cast(Library, wanted) if wanted else _fastest(_vendor(), torch.backends.cpu.get_cpu_capability())


def _fastest(vendor: str, capability: str) -> Library:
    """The library for a maker of processors and the widest vectors that Torch uses, as Torch names them."""
    both = _is_built(torch.backends.mkl) and _is_built(torch.backends.mkldnn)
    return "onednn" if both and vendor not in ("", "GenuineIntel") and capability.startswith("AVX512") else "mkl"


def _is_built(library: Any) -> bool:
    """Whether Torch was built with a library, one of ``torch.backends``."""
    return bool(library.is_available())


def _vendor() -> str:
    """The processor's maker as Linux names it, such as ``AuthenticAMD``; empty on other systems."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``F.linear``, with gradients, computed by :func:`library`.

    Everything that is not a large float32 product on a CPU is passed to ``F.linear`` itself: autocast, GPUs, tensors
    without memory, and programs that Torch compiles or exports.

    Args:
        x: (..., I).
        weight_OI: The matrix; any strides.
        bias_O: Or none.

    Returns:
        (..., O).

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    if library() == "mkl" or not _is_large_float32(x, weight_OI) or (bias_O is not None and bias_O.dtype != x.dtype):
        return F.linear(x, weight_OI, bias_O)
    x_NI = x.reshape(-1, x.shape[-1])
    y_NO: Tensor = _OnednnLinear.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], len(weight_OI))


def product_into(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write ``left @ right`` to ``out`` by :func:`library`, without gradients.

    Args:
        left: (N, I), or a batch of such matrices, (B, N, I).
        right: (I, O) or (B, I, O), of the same type.
        out: (N, O) or (B, N, O), of the same type; contiguous where it is a batch.
    """
    if library() == "mkl" or not _is_large_float32(left, right.mT):
        (torch.mm if left.dim() == 2 else torch.bmm)(left, right, out=out)
    elif left.dim() == 2:
        out.copy_(_onednn(left, right.t()))
    else:
        for left_NI, right_IO, out_NO in zip(left, right, out, strict=True):
            out_NO.copy_(_onednn(left_NI, right_IO.t()))


class Linear(nn.Linear):
    """``nn.Linear`` whose products are computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of (..., I)."""
        return linear(x, self.weight, self.bias)


class _OnednnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _onednn(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grads[0].contiguous()
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _onednn(grad_NO, weight_OI.t()) if of_x else None,
            _onednn(grad_NO.t(), x_NI.t()) if of_weight else None,
            grad_NO.sum(0) if of_bias else None,
        )


def _onednn(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], ""))


def _is_large_float32(x: Tensor, weight_OI: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: the next conditions would fix the number of rows of an export
        and x.dtype == weight_OI.dtype == torch.float32
        and x.device.type == weight_OI.device.type == "cpu"
        and min(x.shape[-1], weight_OI.shape[-2]) >= _SHORTEST_SIDE
        and x.numel() >= _SHORTEST_SIDE * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def measure(rows: int = 1024, width: int = 400, rounds: int = 5) -> dict[Library, float]:
    """Floating point operations per second of each library, for a layer of ``width`` units, forward and backward.

    Takes a fifth of a second; the best of ``rounds`` timings counts.
    """
    x_NI, grad_NO = torch.randn(rows, width, requires_grad=True), torch.randn(rows, width)
    weight_OI = torch.randn(width, width, requires_grad=True)
    candidates: dict[Library, Any] = {"mkl": F.linear}
    if _is_built(torch.backends.mkldnn):
        candidates["onednn"] = _OnednnLinear.apply
    seconds: dict[Library, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, product in candidates.items():
            begin = time.perf_counter()
            product(x_NI, weight_OI, None).backward(grad_NO)
            seconds[name].append(time.perf_counter() - begin)
    return {name: 6 * rows * width**2 / min(turns) for name, turns in seconds.items()}


def computes_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 run in the hardware of ``device``."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
