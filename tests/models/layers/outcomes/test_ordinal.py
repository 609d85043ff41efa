"""Ordered levels: likelihoods, expected levels and gradients against probabilities in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from models.layers.heads import task_losses
from models.layers.outcomes.ordinal import OrdinalLevels, OrdinalTasks

SHARES = st.lists(st.floats(0.01, 1), min_size=2, max_size=6)


def probabilities(levels: OrdinalLevels, latent: float) -> np.ndarray:
    """(K,) the reference: differences of the chances to be above each threshold."""
    thresholds = levels.thresholds().detach().double().numpy()
    above = np.concatenate([[1.0], expit(latent - thresholds), [0.0]])
    return np.asarray(above[:-1] - above[1:])


@given(SHARES, st.floats(-8, 8, width=32))
def test_likelihood_and_expected_level_are_those_of_the_probabilities(shares: list[float], latent: float) -> None:
    values = np.cumsum([1.0, 0.5, 2.0, 1.0, 3.0, 1.0])[: len(shares)]
    levels = OrdinalLevels(values.tolist())
    levels.start_at(shares)
    expected = probabilities(levels, latent)
    losses = levels.losses(torch.full((len(values),), latent), torch.tensor(values, dtype=torch.float32))
    np.testing.assert_allclose(losses.detach().numpy(), -np.log(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(levels.expected(torch.tensor(latent))), expected @ values, rtol=1e-5)


@given(SHARES)
def test_a_latent_score_of_zero_gives_the_shares_it_starts_at(shares: list[float]) -> None:
    levels = OrdinalLevels(list(range(len(shares))))
    levels.start_at(shares)
    np.testing.assert_allclose(probabilities(levels, 0.0), np.array(shares) / sum(shares), atol=1e-5)


@pytest.mark.parametrize("latent", [0.0, 1e4, -1e4])
def test_losses_and_gradients_are_finite_for_scores_of_any_size(latent: float) -> None:
    levels = OrdinalLevels([1, 2, 3, 4])
    levels.start_at([0.5, 0.0, 0.0, 0.5])  # levels without a row have room, too
    latent_B = torch.full((4,), latent, requires_grad=True)
    losses = levels.losses(latent_B, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    gradients = torch.autograd.grad(losses.sum(), [latent_B, levels.first, levels.gaps])
    assert (losses >= 0).all()
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_thresholds_stay_in_order_whatever_their_parameters_are() -> None:
    levels = OrdinalLevels(range(5))
    with torch.no_grad():
        levels.gaps.copy_(torch.tensor([-5.0, 3.0, -0.1]))
    assert (levels.thresholds().diff() > 0).all()


def test_the_loss_of_tasks_reads_latent_scores_in_training_and_levels_in_evaluation() -> None:
    ordinal = OrdinalTasks({1: (1.0, 2.0, 5.0)})
    latent_BT = torch.tensor([[0.5, -1.0], [-0.5, 3.0], [0.0, 0.0]])
    labels_BT = torch.tensor([[1.0, 2.0], [0.0, 5.0], [1.0, math.nan]])
    click, stars = task_losses(latent_BT, labels_BT, ["binary", "ordinal"], ordinal=ordinal).tolist()
    levels = ordinal.parts[1]
    expected = -math.log(probabilities(levels, -1.0)[1]) - math.log(probabilities(levels, 3.0)[2])
    assert stars == pytest.approx(expected / 2, rel=1e-5)
    seen_BT = ordinal(latent_BT)
    torch.testing.assert_close(seen_BT[:, 0], latent_BT[:, 0])
    assert task_losses(latent_BT, labels_BT, ["binary", "ordinal"])[0].item() == pytest.approx(click)
    squares = [(float(seen_BT[0, 1]) - 2) ** 2, (float(seen_BT[1, 1]) - 5) ** 2]
    assert task_losses(seen_BT, labels_BT, ["binary", "ordinal"])[1].item() == pytest.approx(sum(squares) / 2)
