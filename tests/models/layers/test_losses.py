"""Losses over lists against loops over their rows and pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.layers.losses import LossConfig, loss_of_labelled

LISTS = st.lists(
    st.lists(st.tuples(st.integers(-8, 8), st.sampled_from([0.0, 0.0, 1.0, math.nan]), st.integers(1, 3)), min_size=1,
             max_size=5),
    min_size=1,
    max_size=4,
)  # fmt: skip


def tensors(lists) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = [(score / 4, label, number, weight) for number, one in enumerate(lists) for score, label, weight in one]
    scores, labels, numbers, weights = zip(*rows, strict=True)
    return torch.tensor(scores), torch.tensor(labels), torch.tensor(numbers), torch.tensor(weights, dtype=torch.float32)


def plain(kind: str, lists) -> float:
    total, positive_lists, rows, pointwise, pairs = 0.0, 0, 0, 0.0, 0.0
    for one in lists:
        kept = [(score / 4, label, weight) for score, label, weight in one if not math.isnan(label)]
        rows += len(kept)
        positive_lists += any(label > 0 for _, label, _ in kept)
        pointwise += sum(weight * math.log1p(math.exp(-score if label else score)) for score, label, weight in kept)
        chance = [math.exp(score) if kind == "softmax" else 1 / (1 + math.exp(-score)) for score, _, _ in kept]
        ranked = sorted(range(len(kept)), key=lambda i: -kept[i][0])
        discount = {i: 1 / math.log2(rank + 2) for rank, i in enumerate(ranked)}
        ideal = sum(1 / math.log2(rank + 2) for rank in range(sum(label > 0 for _, label, _ in kept)))
        for i, (score, label, weight) in enumerate(kept):
            if not label:
                continue
            if kind not in ("lambdarank", "pairwise"):
                total -= weight * math.log(chance[i] / sum(chance))
                continue
            for j, (other, its, _) in enumerate(kept):
                pairs += label - its
                change = (label - its) * (abs(discount[i] - discount[j]) / ideal if kind == "lambdarank" else 1.0)
                total += weight * change * math.log1p(math.exp(other - score))
    if kind == "calibrated":
        return (0.7 * pointwise + 0.3 * total) / max(rows, 1)
    return total / max(pairs if kind == "pairwise" else positive_lists, 1)


@pytest.mark.parametrize("kind", ["softmax", "pairwise", "lambdarank", "calibrated"])
@given(lists=LISTS)
def test_a_loss_is_the_sum_over_its_lists(kind: str, lists) -> None:
    scores, labels, numbers, weights = tensors(lists)
    config = LossConfig.parse({"kind": kind, "share": 0.3})
    loss = loss_of_labelled(config, scores.requires_grad_(), labels, numbers, weights)
    assert float(loss.detach()) == pytest.approx(plain(kind, lists), rel=1e-4, abs=1e-6)
    loss.backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[labels.isnan()] == 0).all()


def test_a_softmax_of_large_logits_is_finite() -> None:
    scores = torch.tensor([2000.0, -2000.0, 0.0], requires_grad=True)
    loss = loss_of_labelled(
        LossConfig.parse({"kind": "softmax"}), scores, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 0, 1])
    )
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


def test_the_calibrated_loss_is_least_at_the_true_probabilities() -> None:
    """On lists of which each row is positive by its own chance, which a softmax of logits would not learn."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.1, 0.2, 0.4])
    labels = (torch.rand(4000, 3, generator=generator) < chances).float().flatten()
    lists = torch.arange(4000).repeat_interleave(3)
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of_labelled(LossConfig.parse({"kind": "calibrated"}), logits.repeat(4000), labels, lists)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().sigmoid(), chances, atol=0.02, rtol=0)
