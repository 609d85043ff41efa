"""Losses of several tasks with missing labels."""

import math

import pytest
import torch

from models.layers.heads import task_losses

NAN = float("nan")


def test_each_kind_has_its_own_loss():
    logits_BT = torch.tensor([[0.3, 2.0, 0.5], [-1.0, 1.0, -0.5]])
    labels_BT = torch.tensor([[1.0, 1.5, 3.0], [0.0, 0.0, 0.0]])
    binary, regression, count = task_losses(logits_BT, labels_BT, ["binary", "regression", "count"]).tolist()
    assert binary == pytest.approx((math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-1.0))) / 2)
    assert regression == pytest.approx((0.25 + 1.0) / 2)
    assert count == pytest.approx((math.exp(0.5) - 1.5 + math.exp(-0.5)) / 2)


def test_rows_without_a_label_change_neither_loss_nor_gradient():
    logits_BT = torch.randn(4, 2, requires_grad=True)
    labels_BT = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, NAN], [NAN, NAN]])
    losses_T = task_losses(logits_BT, labels_BT, ["binary", "count"])
    expected = task_losses(logits_BT[[0, 2], :1], labels_BT[[0, 2], :1], ["binary"])
    torch.testing.assert_close(losses_T, torch.tensor([expected.item(), 0.0]))
    losses_T.sum().backward()
    assert logits_BT.grad[[1, 3]].abs().sum() == 0
    assert logits_BT.grad.isfinite().all()


def test_weights_multiply_the_losses_of_rows() -> None:
    logits_BT, labels_BT = torch.randn(6, 2), torch.tensor([[0.0, 2.0], [1.0, math.nan]] * 3)
    weights_BT = torch.tensor([[1.0, 0.0], [2.0, 5.0], [0.5, 1.0]] * 2)
    losses_T = task_losses(logits_BT, labels_BT, ["binary", "count"], weights_BT)
    for t, kind in enumerate(("binary", "count")):
        rows = [
            float(
                weights_BT[b, t] * task_losses(logits_BT[b : b + 1, t : t + 1], labels_BT[b : b + 1, t : t + 1], [kind])
            )
            for b in range(6)
            if not labels_BT[b, t].isnan()
        ]
        assert float(losses_T[t]) == pytest.approx(sum(rows) / len(rows), rel=1e-5)
