"""Metrics of several models on the same rows, with bootstrap draws over users that all of them share.

Letters: N rows, U users, R draws. Draws are shared, so the difference of two models' draws is a paired bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.layers.heads import TaskKind
from recsys.metrics.arrays import Floats
from recsys.metrics.bootstrap import Interval, Resampling, interval
from recsys.metrics.metric import Metric
from recsys.metrics.rows import RowFacts

_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Measured:
    """A metric's value on all rows and its (R,) bootstrap draws."""

    value: float
    draws_R: Floats

    @property
    def interval(self) -> Interval:
        """95% percentile interval."""
        return interval(self.draws_R)

    @property
    def variance(self) -> float:
        """Variance of the metric over the choice of users."""
        return float(np.nanvar(self.draws_R))


class TestRows:
    """Labelled rows of one task on which models are compared.

    Args:
        labels_N: The labels; rows without one (NaN) are left out.
        users_N: The code of each row's user, -1 for none (see :func:`~recsys.metrics.arrays.group_codes`); a draw takes
            users with all their rows. ``None`` draws single rows.
        lists_N: The code of the list that each row was shown in, if there are any.
        weights_N: How much each row counts; all alike if ``None``.
        kind: Of the task.
        rows_N: Boolean, which rows to use (a slice); all if ``None``.
        draws: Number of bootstrap draws.
        seed: Same seed, same draws.
    """

    __test__ = False

    def __init__(
        self,
        labels_N: ArrayLike,
        users_N: ArrayLike | None,
        *,
        lists_N: ArrayLike | None = None,
        weights_N: ArrayLike | None = None,
        kind: TaskKind = "binary",
        rows_N: NDArray[np.bool_] | None = None,
        draws: int = 400,
        seed: int = 0,
    ) -> None:
        labels = np.asarray(labels_N, dtype=np.float64)
        self.kind = kind
        self.kept = np.isfinite(labels) if rows_N is None else np.isfinite(labels) & rows_N
        self.labels_N = labels[self.kept]
        self.has_users = users_N is not None
        users, lists, weights = (
            None if values is None else np.asarray(values)[self.kept] for values in (users_N, lists_N, weights_N)
        )
        self.facts = RowFacts(users, lists, weights)
        self.resampling = Resampling(
            users, len(self.labels_N), lists_N=lists, weights_N=weights, draws=draws, seed=seed
        )

    @classmethod
    def of(
        cls,
        labels_N: ArrayLike,
        facts: RowFacts,
        *,
        kind: TaskKind = "binary",
        rows_N: NDArray[np.bool_] | None = None,
        draws: int = 400,
    ) -> "TestRows":
        """The rows with these users, lists and weights."""
        return cls(
            labels_N,
            facts.users_N,
            lists_N=facts.lists_N,
            weights_N=facts.weights_N,
            kind=kind,
            rows_N=rows_N,
            draws=draws,
        )

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def users(self) -> int:
        """Number of users; of rows, where there are no users."""
        return self.resampling.users

    def value(self, metric: Metric, logits_N: ArrayLike) -> float:
        """A metric; ``logits_N`` has all rows, also those outside the slice."""
        groups_N = self.resampling.groups(metric.groups)
        weights_N = self.resampling.weights_N
        return metric.measure(self.kind, self.labels_N, self._logits(logits_N), groups_N, weights_N)

    def measure(self, metric: Metric, logits_N: ArrayLike) -> Measured:
        """A metric with its bootstrap draws; ``logits_N`` has all rows, also those outside the slice."""
        draws_R = metric.resample(self.kind, self.labels_N, self._logits(logits_N), self.resampling)
        return Measured(self.value(metric, logits_N), draws_R)

    def influence(self, metric: Metric, logits_N: ArrayLike) -> tuple[float, Floats]:
        """A metric and its influence by user, (U,), from which the variance over users is computed.

        Raises:
            ValueError: The metric has no influence function, or is undefined on these rows.
        """
        if metric.influence is None:
            raise ValueError(f"{metric.label} has no influence function")
        value, influence_N = metric.influence(
            self.labels_N, metric.outputs(self.kind, self._logits(logits_N)), self.resampling.weights_N
        )
        sums_U = np.bincount(self.resampling.cluster_N, weights=influence_N, minlength=self.resampling.clusters)
        return value, sums_U.astype(np.float64)

    def difference(self, metric: Metric, logits_N: ArrayLike, other_N: ArrayLike) -> tuple[float, float, Interval]:
        """A metric of two models, and the 95% interval over users of the first less the second.

        NaN where the metric is undefined on these rows.
        """
        if metric.influence is None:
            ours, theirs = self.measure(metric, logits_N), self.measure(metric, other_N)
            return ours.value, theirs.value, interval(ours.draws_R - theirs.draws_R)
        try:
            (own, own_U), (other, other_U) = (self.influence(metric, scores_N) for scores_N in (logits_N, other_N))
        except ValueError:
            return float("nan"), float("nan"), Interval(float("nan"), float("nan"))
        users = len(own_U)
        error = float(np.sqrt(np.square(own_U - other_U).sum() * users / max(users - 1, 1)))
        return own, other, Interval(own - other - _NORMAL_95 * error, own - other + _NORMAL_95 * error)

    def _logits(self, logits_N: ArrayLike) -> Floats:
        return np.asarray(logits_N, dtype=np.float64)[self.kept]
