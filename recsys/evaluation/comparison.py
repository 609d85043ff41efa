"""Metrics of several models on the same rows, with bootstrap draws over users that all of them share.

Letters: N rows, U users, R draws. Draws are shared, so the difference of two models' draws is a paired bootstrap.
All metrics but AUC are ratios of sums over users, so all R draws of one are a single matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from recsys.metrics import metrics
from recsys.metrics.significance import Floats, auc_influence, bootstrap_auc, bootstrap_ratio, bootstrap_weights


@dataclass(frozen=True)
class Measured:
    """A metric's value on all rows and its (R,) bootstrap draws."""

    value: float
    draws_R: Floats

    @property
    def interval(self) -> metrics.Interval:
        """95% percentile interval."""
        return metrics.interval(self.draws_R)

    @property
    def variance(self) -> float:
        """Variance that the choice of users gives the metric."""
        return float(np.nanvar(self.draws_R))


class TestRows:
    """Labelled rows on which models are compared.

    Args:
        labels_N: 0 or 1; rows of other values (NaN: no label) are left out.
        users_N: Who each row belongs to; a draw takes users with all their rows. ``None`` draws single rows.
        rows_N: Boolean, which rows to use (a slice); all if ``None``.
    """

    __test__ = False

    def __init__(
        self,
        labels_N: ArrayLike,
        users_N: ArrayLike | None,
        *,
        rows_N: NDArray[np.bool_] | None = None,
        draws: int = 400,
        seed: int = 0,
    ) -> None:
        labels = np.asarray(labels_N, dtype=np.float64)
        self.kept = np.isfinite(labels) if rows_N is None else np.isfinite(labels) & rows_N
        self.labels_N = labels[self.kept]
        self.has_users = users_N is not None
        users = np.arange(len(labels)) if users_N is None else np.asarray(users_N)
        self._draws, self._seed = draws, seed
        self.user_N = np.unique(users[self.kept], return_inverse=True)[1].reshape(-1)

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def users(self) -> int:
        return int(self.user_N.max(initial=-1)) + 1

    @cached_property
    def _drawn_ru(self) -> NDArray[np.float32]:
        return bootstrap_weights(self.users, self._draws, self._seed)

    def measure(self, metric: str, logits_N: ArrayLike) -> Measured:
        """One of :data:`~recsys.metrics.metrics.METRICS`; ``logits_N`` are of all rows, also of those outside the slice."""
        return _MEASURES[metric](self, np.asarray(logits_N, dtype=np.float64)[self.kept])

    def auc_influence(self, logits_N: ArrayLike) -> tuple[float, Floats]:
        """AUC and how much each user's rows move it, (U,): what DeLong's variance over users is made of."""
        auc, influence_N = auc_influence(self.labels_N, np.asarray(logits_N, dtype=np.float64)[self.kept])
        influence_U: Floats = np.bincount(self.user_N, weights=influence_N, minlength=self.users).astype(np.float64)
        return auc, influence_U

    def _ratio(self, top_N: ArrayLike, bottom_N: ArrayLike, index_N: NDArray[np.int64] | None = None) -> Measured:
        top_N, bottom_N = np.asarray(top_N, dtype=np.float64), np.asarray(bottom_N, dtype=np.float64)
        draws_R = bootstrap_ratio(top_N, bottom_N, self.user_N if index_N is None else index_N, self._drawn_ru)
        total = float(bottom_N.sum())
        return Measured(float(top_N.sum()) / total if total else float("nan"), draws_R)

    def _auc(self, logits_N: Floats) -> Measured:
        draws_R = bootstrap_auc(self.labels_N, logits_N, self.user_N, self._drawn_ru)
        return Measured(metrics.auc(self.labels_N, logits_N), draws_R)

    def _log_loss(self, logits_N: Floats) -> Measured:
        return self._ratio(np.logaddexp(0.0, logits_N) - self.labels_N * logits_N, np.ones(len(self)))

    def _normalized_entropy(self, logits_N: Floats) -> Measured:
        loss, rate = self._log_loss(logits_N), self._ratio(self.labels_N, np.ones(len(self)))
        return Measured(loss.value / float(_entropy(rate.value)), loss.draws_R / _entropy(rate.draws_R))

    def _calibration(self, logits_N: Floats) -> Measured:
        return self._ratio(expit(logits_N), self.labels_N)

    def _within_users(self, of_groups: Callable[..., tuple[Floats, Floats]], logits_N: Floats) -> Measured:
        value_U, weight_U = of_groups(self.labels_N, logits_N, self.user_N)
        weight_U = np.where(np.isnan(value_U), 0.0, weight_U)
        return self._ratio(np.nan_to_num(value_U) * weight_U, weight_U, np.arange(len(value_U)))


def _entropy(rate: ArrayLike) -> Floats:
    rate = np.asarray(rate, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


_MEASURES: dict[str, Callable[[TestRows, Floats], Measured]] = {
    "auc": TestRows._auc,
    "gauc": lambda rows, logits_N: rows._within_users(metrics.group_auc, logits_N),
    "logloss": TestRows._log_loss,
    "ne": TestRows._normalized_entropy,
    "calibration": TestRows._calibration,
    "ndcg@10": lambda rows, logits_N: rows._within_users(metrics.group_ndcg_at_k, logits_N),
}
