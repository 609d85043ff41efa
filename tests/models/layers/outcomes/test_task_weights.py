"""Weights of the losses of tasks that are learned."""

import torch

from models.layers.outcomes.task_weights import UncertaintyWeights, likelihood_factors


def test_weights_settle_where_each_likelihood_is_largest() -> None:
    """The minimum over log variances: L = variance / 2 for a loss, L = variance for squared errors."""
    weights, losses_T = UncertaintyWeights(3), torch.tensor([0.3, 50.0, 4.0])
    factors_T = likelihood_factors(["binary", "regression", "count"])
    optimizer = torch.optim.LBFGS(weights.parameters(), max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = weights(losses_T, factors_T).sum()
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(weights.weights().detach(), 1 / torch.tensor([0.6, 50.0, 8.0]), rtol=1e-3, atol=0)


def test_it_starts_with_equal_weights() -> None:
    weights = UncertaintyWeights(2)
    found_T = weights(torch.tensor([0.5, 3.0]), likelihood_factors(["binary", "regression"]))
    torch.testing.assert_close(found_T, torch.tensor([0.5, 1.5]))
