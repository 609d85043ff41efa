"""What another policy would have earned, estimated from the decisions of the policy that was logged.

In every decision the logged policy chose one action with a known probability, its propensity, and a reward followed.
A new policy would have chosen the same action with another probability. Their ratio is the importance weight of the
decision. Estimators are ratios of two sums over decisions, so all of them share one bootstrap:

- ``ips``: inverse propensity scoring, the mean of weighted rewards (Horvitz and Thompson, 1952). Unbiased if every
  action of the new policy has a positive propensity, with a variance that grows with the weights.
- ``snips``: the same divided by the mean weight (self-normalised; Swaminathan and Joachims, NeurIPS 2015). A smaller
  variance, and a bias that vanishes with more decisions.
- ``dm``: direct method, the rewards that a model predicts for the new policy's actions. No weights, and as wrong as
  the model is.
- ``dr``: doubly robust, the direct method corrected by the weighted errors of the model on logged actions (Dudík,
  Langford and Li, ICML 2011). Unbiased if propensities or predictions are right.

Letters: N decisions, R draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.metrics.arrays import Floats
from recsys.metrics.bootstrap import Interval, Resampling, interval

Sums = tuple[Floats, Floats]
"""(N,) numerators and (N,) denominators: an estimate is the sum of the ones over the sum of the others."""


@dataclass(frozen=True)
class Decisions:
    """Logged decisions, and what a new policy would do in their place.

    Attributes:
        rewards_N: What followed the logged action.
        propensities_N: The chance with which the logged policy chose it, above 0 and up to 1.
        chosen_N: The chance with which the new policy chooses it.
        predicted_N: The reward that a model predicts for the logged action; ``None`` without a model.
        expected_N: The mean of the model's predictions over the actions of the new policy; ``None`` without a model.
    """

    rewards_N: Floats
    propensities_N: Floats
    chosen_N: Floats
    predicted_N: Floats | None = None
    expected_N: Floats | None = None

    def take(self, rows: NDArray[np.bool_]) -> "Decisions":
        """Some of the decisions."""
        predicted_N, expected_N = (None if part is None else part[rows] for part in (self.predicted_N, self.expected_N))
        return Decisions(self.rewards_N[rows], self.propensities_N[rows], self.chosen_N[rows], predicted_N, expected_N)

    def weights(self, clip: float = 0.0) -> Floats:
        """(N,) importance weights: chance of the new policy / chance of the logged one.

        Args:
            clip: Smaller propensities are raised to this value: a smaller variance, at the price of a bias.
        """
        return np.asarray(self.chosen_N / np.maximum(self.propensities_N, clip))


def logged(decisions: Decisions, weights_N: Floats) -> Sums:
    """The mean reward of the logged policy."""
    return decisions.rewards_N, np.ones_like(weights_N)


def ips(decisions: Decisions, weights_N: Floats) -> Sums:
    """Inverse propensity scoring."""
    return weights_N * decisions.rewards_N, np.ones_like(weights_N)


def snips(decisions: Decisions, weights_N: Floats) -> Sums:
    """Self-normalised inverse propensity scoring."""
    return weights_N * decisions.rewards_N, weights_N


def direct(decisions: Decisions, weights_N: Floats) -> Sums:
    """The direct method. Needs predictions."""
    assert decisions.expected_N is not None
    return decisions.expected_N, np.ones_like(weights_N)


def doubly_robust(decisions: Decisions, weights_N: Floats) -> Sums:
    """The doubly robust estimate. Needs predictions."""
    assert decisions.expected_N is not None
    assert decisions.predicted_N is not None
    errors_N = decisions.rewards_N - decisions.predicted_N
    return decisions.expected_N + weights_N * errors_N, np.ones_like(weights_N)


ESTIMATORS: Mapping[str, Callable[[Decisions, Floats], Sums]] = {
    "dm": direct,
    "ips": ips,
    "snips": snips,
    "dr": doubly_robust,
}
"""Estimators of a new policy's mean reward, by name."""

NEED_PREDICTIONS = frozenset({"dm", "dr"})
"""The estimators that read the predictions of a model."""


@dataclass(frozen=True)
class Estimate:
    """An estimated mean reward.

    Attributes:
        value: The new policy's mean reward per decision.
        interval: Its 95% percentile interval.
        change: ``value`` less the mean reward of the logged policy.
        change_interval: Of ``change``, on the same draws.
    """

    value: float
    interval: Interval
    change: float
    change_interval: Interval


def estimate(
    decisions: Decisions, resampling: Resampling, *, clip: float = 0.0
) -> tuple[Estimate, dict[str, Estimate]]:
    """The logged policy's mean reward, and every estimate of the new one's that the decisions allow, by name.

    Args:
        resampling: Draws of these decisions (of whole users or lists, whose decisions depend on each other).
        clip: See :meth:`Decisions.weights`.

    Example:
        >>> rewards, propensities = np.array([1.0, 0.0]), np.array([0.5, 0.5])
        >>> found = Decisions(rewards, propensities, chosen_N=np.array([1.0, 0.0]))
        >>> estimate(found, Resampling(None, 2))[1]["ips"].value
        1.0
    """
    weights_N = decisions.weights(clip)
    base = logged(decisions, weights_N)
    base_value, base_R = _ratio(base), resampling.ratio(*base)
    names = [name for name in ESTIMATORS if decisions.expected_N is not None or name not in NEED_PREDICTIONS]
    found = {}
    for name in names:
        sums = ESTIMATORS[name](decisions, weights_N)
        value, draws_R = _ratio(sums), resampling.ratio(*sums)
        found[name] = Estimate(value, interval(draws_R), value - base_value, interval(draws_R - base_R))
    return Estimate(base_value, interval(base_R), 0.0, Interval(0.0, 0.0)), found


def effective_rows(weights_N: Floats) -> float:
    """The effective sample size: how many decisions of equal weight would tell as much (Kish, 1965); 0 without any."""
    squares = float(weights_N @ weights_N)
    return float(weights_N.sum()) ** 2 / squares if squares > 0 else 0.0


def _ratio(sums: Sums) -> float:
    above, below = (float(np.sum(part)) for part in sums)
    return above / below if below else float("nan")
