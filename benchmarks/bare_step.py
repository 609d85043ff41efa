"""A training step of DCN-V2's dense part as one would write it by hand for a single shape.

Forward and backward are spelled out: no graph, no casts between layers, no optimizer; even the residuals of the cross
layers and the logits are in the dtype of the products, which no real training would do. What remains besides products
are the activations, the cross layers' multiplications and the gradients' sums that they need: a bound for any library.

Letters: B rows of a batch, D width of the row, O outputs of a layer.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def bare_step(
    rows: int, width: int, hidden: Sequence[int], *, cross_layers: int, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A step on made-up rows; it gives the gradient (B, D) of the row in float32, as tables take it."""
    cross = [_layer(width, width, dtype) for _ in range(cross_layers)]
    tower = [_layer(w, out, dtype) for w, out in pairwise((width, *hidden))]
    head_1D, head_1O = (torch.randn(1, size).to(dtype) / size**0.5 for size in (width, hidden[-1]))
    row_BD, label_B1 = torch.randn(rows, width), torch.randint(0, 2, (rows, 1)).float()

    def step() -> Tensor:
        x_BD = row_BD.to(dtype)
        inputs, linear = [x_BD], []
        for matrix_DD, bias_D in cross:
            linear.append(torch.addmm(bias_D, inputs[-1], matrix_DD.T))
            inputs.append(torch.addcmul(inputs[-1], x_BD, linear[-1]))
        crossed_BD = inputs.pop()
        outputs = [crossed_BD]
        for matrix_OI, bias_O in tower:
            outputs.append(torch.addmm(bias_O, outputs[-1], matrix_OI.T).relu_())

        logit_B1 = torch.addmm(outputs[-1] @ head_1O.T, crossed_BD, head_1D.T).float()
        grad_B1 = ((logit_B1.sigmoid() - label_B1) / rows).to(dtype)
        _ = grad_B1.T @ outputs[-1], grad_B1.T @ crossed_BD
        grad_BO = grad_B1 @ head_1O
        for matrix_OI, _ in reversed(tower):
            grad_BO = torch.ops.aten.threshold_backward(grad_BO, outputs.pop(), 0)
            _ = grad_BO.T @ outputs[-1], grad_BO.sum(0)
            grad_BO = grad_BO @ matrix_OI
        grad_BD = torch.addmm(grad_BO, grad_B1, head_1D)
        row_grad_BD = torch.zeros_like(grad_BD)
        for (matrix_DD, _), y_BD in zip(reversed(cross), reversed(linear), strict=True):
            row_grad_BD.addcmul_(grad_BD, y_BD)
            inner_BD = grad_BD * x_BD
            _ = inner_BD.T @ inputs.pop(), inner_BD.sum(0)
            grad_BD = torch.addmm(grad_BD, inner_BD, matrix_DD)
        return (row_grad_BD + grad_BD).float()

    return step


def _layer(width: int, out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (torch.randn(out, width) / width**0.5).to(dtype), torch.zeros(out, dtype=dtype)
