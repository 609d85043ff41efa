"""Losses of several tasks with missing labels."""

import math

import pytest
import torch

from models.layers.heads import TaskKind, task_losses

NAN = float("nan")


def test_each_kind_has_its_own_loss():
    logits_BT = torch.tensor([[0.3, 2.0, 0.5], [-1.0, 1.0, -0.5]])
    labels_BT = torch.tensor([[1.0, 1.5, 3.0], [0.0, 0.0, 0.0]])
    binary, regression, count = task_losses(logits_BT, labels_BT, ["binary", "regression", "count"]).tolist()
    assert binary == pytest.approx((math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-1.0))) / 2)
    assert regression == pytest.approx((0.25 + 1.0) / 2)
    best = 3 - 3 * math.log(3)  # half the deviance is 0 where the rate is the count
    assert count == pytest.approx((math.exp(0.5) - 1.5 - best + math.exp(-0.5)) / 2)


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


def test_odds_of_a_duration_are_its_mean() -> None:
    seconds_B = torch.tensor([0.0, 0.0, 30.0, 0.5, 400.0, 0.0])
    logit = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = task_losses(logit.expand(6, 1), seconds_B[:, None], ["duration"]).sum()
        total.backward()
        return total

    optimizer.step(loss)
    assert float(logit.exp()) == pytest.approx(float(seconds_B.mean()), rel=1e-3)


@pytest.mark.parametrize("kind", ["binary", "regression", "count", "duration"])
def test_losses_are_never_negative(kind: TaskKind) -> None:
    labels_BT = torch.randint(0, 2, (200, 1)) * (1 if kind == "binary" else torch.rand(200, 1) * 100)
    assert float(task_losses(torch.randn(200, 1) * 5, labels_BT.float(), [kind])) >= 0
