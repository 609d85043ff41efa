"""Linear layers in int8: the inputs of a matrix are rounded to a static grid, and the product is an integer GEMM.

A value of column j is ``low_j + step_j * code_j``, with a code from 0 to 255. With ``w_oj * step_j = scale_o *
code_oj`` a product is ``scale_o * sum_j code_oj code_j`` plus a constant, which is added to the bias: a sum of
integers, hence exact. The grids are fixed before the first row is scored, so a score does not depend on the other rows
of a batch. A layer that feeds another writes the codes of that layer's grid, ReLU included.

Weights are symmetric by row and activations asymmetric, as in Jacob et al. (arXiv 1712.05877). Each column has its own
grid, so that a feature of large values does not coarsen the others; its step is multiplied into the weights (Nagel et
al., arXiv 1906.04721; SmoothQuant, arXiv 2211.10438).

Letters: B rows of a batch, D input columns of a matrix, O output columns.
"""

from collections.abc import Mapping
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from models.products import linear

LARGEST_CODE = 255
_LARGEST_WEIGHT = 127


class Int8Linear(nn.Module):
    """``x W^T + b`` on codes.

    Args:
        weight_OD: As trained; rounded here.
        bias_O: The bias; ``None`` for a layer without one.
        grid_2D: ``low`` and ``step`` of the columns of x.
        relu: Replace negative results by 0.
        out_2O: Grid of the results; float32 results if absent.
    """

    codes_OD: Tensor
    scale_O: Tensor
    bias_O: Tensor
    inverse_D: Tensor
    offset_D: Tensor

    def __init__(
        self,
        weight_OD: Tensor,
        bias_O: Tensor | None,
        grid_2D: Tensor,
        *,
        relu: bool = False,
        out_2O: Tensor | None = None,
    ) -> None:
        super().__init__()
        low_D, step_D = grid_2D
        scaled_OD = weight_OD * step_D
        scale_O = scaled_OD.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST_WEIGHT
        constant_O = weight_OD @ low_D if bias_O is None else bias_O + weight_OD @ low_D
        self.register_buffer("codes_OD", (scaled_OD / scale_O[:, None]).round().to(torch.int8))
        if out_2O is not None:
            out_low_O, out_step_O = out_2O
            scale_O, constant_O = scale_O / out_step_O, (constant_O - out_low_O) / out_step_O
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", constant_O)
        self.register_buffer("inverse_D", 1 / step_D)
        self.register_buffer("offset_D", 0.5 - low_D / step_D)
        self._relu, self._to_codes = relu, out_2O is not None
        self._kernel = _Kernel(self.codes_OD) if exact_kernel() else None

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, O) float32, or uint8 codes if there is a grid for them; ``x_BD`` holds floats or codes."""
        codes_BD = x_BD if x_BD.dtype == torch.uint8 else self.encode(x_BD)
        if self._kernel is None:
            return self.plain(codes_BD)
        return self._kernel(codes_BD, self.scale_O, self.bias_O, relu=self._relu, to_codes=self._to_codes)

    def encode(self, x_BD: Tensor) -> Tensor:
        """(B, D) uint8, the nearest code of each number."""
        return _as_codes(torch.addcmul(self.offset_D, x_BD.float(), self.inverse_D))

    def plain(self, codes_BD: Tensor) -> Tensor:
        """:meth:`forward` of codes in float32: the same sums, as long as they are below 2**24."""
        with torch.autocast(codes_BD.device.type, enabled=False):
            y_BO = linear(codes_BD.float(), self.codes_OD.float())
        y_BO = y_BO.mul_(self.scale_O).add_(self.bias_O)
        y_BO = y_BO.relu_() if self._relu else y_BO
        return _as_codes(y_BO.round_()) if self._to_codes else y_BO


def _as_codes(x_BD: Tensor) -> Tensor:
    """Clipped and truncated in place, through int16, because Torch vectorises only that conversion to uint8."""
    return x_BD.clamp_(0, LARGEST_CODE).to(torch.int16).to(torch.uint8)


class _Kernel:
    """oneDNN's product of uint8 by int8."""

    def __init__(self, codes_OD: Tensor) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(codes_OD, None)
        self._zeros_O = torch.zeros(len(codes_OD), dtype=torch.int32)

    def __call__(self, codes_BD: Tensor, scale_O: Tensor, bias_O: Tensor, *, relu: bool, to_codes: bool) -> Tensor:
        out = torch.uint8 if to_codes else torch.float32
        weight = (self._packed, scale_O, self._zeros_O, bias_O)
        y_BO = torch.ops.onednn.qlinear_pointwise(
            codes_BD, 1.0, 0, *weight, 1.0, 0, out, "relu" if relu else "none", [], ""
        )
        return cast(Tensor, y_BO)


@cache
def exact_kernel() -> bool:
    """Whether oneDNN is available and adds in 32 bits: without VNNI it adds pairs in 16 bits, which saturate."""
    codes = torch.full((4, 64), LARGEST_CODE, dtype=torch.uint8)
    weight = torch.full((16, 64), _LARGEST_WEIGHT, dtype=torch.int8)
    try:
        sums = _Kernel(weight)(codes, torch.ones(16), torch.zeros(16), relu=False, to_codes=False)
    except (AttributeError, RuntimeError):
        return False
    return bool((sums == 64 * LARGEST_CODE * _LARGEST_WEIGHT).all())


def fuse(path: str, layers: nn.Module, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> nn.Sequential:
    """A layer, or a sequence of layers, in int8: each with its ReLU, writing the codes of the next.

    Args:
        path: Of ``layers`` in the ranker.
        grids: (2, D) of every linear layer by path.
        out_2O: Grid whose codes the last layer writes; it gives float32 if absent.
    """
    fused: list[nn.Module] = []
    relu = False
    named = layers.named_children() if isinstance(layers, nn.Sequential) else [("", layers)]
    for name, module in reversed([(f"{path}.{name}".removesuffix("."), module) for name, module in named]):
        if isinstance(module, nn.Linear):
            fused.append(Int8Linear(module.weight, module.bias, grids[name], relu=relu, out_2O=out_2O))
            out_2O, relu = grids[name], False
        elif isinstance(module, nn.ReLU):
            relu = True
        elif not isinstance(module, nn.Dropout):
            fused.append(module)
            out_2O = None
    return nn.Sequential(*reversed(fused))
