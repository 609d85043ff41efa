"""Exact metrics of ranking and of probability, as plain vectorised NumPy.

Letters: N rows, G groups (users, or any other column), K bins, R bootstrap draws. ``labels_N`` are 0/1 (or graded
gains for NDCG), ``scores_N`` any numbers that order rows, ``logits_N`` log-odds. ``weights_N`` count a row that many
times, so a bootstrap draw is nothing but weights. A metric that is not defined (one class only, no rows) is NaN.

Ties: AUC gives them one half; the ranking metrics put the negatives of a tie first, so that a constant score earns
nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Floats = npt.NDArray[np.floating]
Groups = npt.NDArray[np.generic]
Positions = npt.NDArray[np.intp]


METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "log loss",
    "ne": "normalised entropy",
    "calibration": "calibration",
    "ndcg@10": "NDCG@10",
}
"""Metrics by which models are compared, and how tables name them."""

LOWER_IS_BETTER = frozenset({"logloss", "ne"})
NEEDS_USERS = frozenset({"gauc", "ndcg@10"})
"""Metrics within users: they need a user column."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Reliability(NamedTuple):
    """Points of a reliability plot: mean probability, mean label and weight of each bin of equal mass."""

    predicted_K: Floats
    observed_K: Floats
    weight_K: Floats


def auc(labels_N: Floats, scores_N: Floats, weights_N: Floats | None = None) -> float:
    """Area under the ROC curve."""
    order_N = np.argsort(scores_N, kind="stable")
    starts = _run_starts(scores_N[order_N])
    area, positives, negatives = _areas(labels_N, _weights(labels_N, weights_N), order_N, starts, np.array([0]))
    return float(area[0] / (positives[0] * negatives[0])) if positives[0] * negatives[0] > 0 else float("nan")


def gauc(labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None) -> float:
    """Mean over groups of the AUC within the group, weighted by rows; groups of one class are left out."""
    auc_G, weight_G = group_auc(labels_N, scores_N, groups_N, weights_N)
    defined_G = ~np.isnan(auc_G)
    return _mean(auc_G[defined_G], weight_G[defined_G])


def group_auc(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None
) -> tuple[Floats, Floats]:
    """AUC (NaN where one class is missing) and weight of each group, groups in sorted order."""
    if len(labels_N) == 0:
        return np.empty(0), np.empty(0)
    group_N = np.unique(groups_N, return_inverse=True)[1]
    weights_N = _weights(labels_N, weights_N)
    order_N = np.lexsort((scores_N, group_N))
    group_starts = _run_starts(group_N[order_N])
    starts = np.union1d(group_starts, _run_starts(scores_N[order_N]))
    area_G, positives_G, negatives_G = _areas(labels_N, weights_N, order_N, starts, group_starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return area_G / (positives_G * negatives_G), positives_G + negatives_G


def _areas(
    labels_N: Floats, weights_N: Floats, order_N: Positions, starts: Positions, group_starts: Positions
) -> tuple[Floats, Floats, Floats]:
    """Weighted concordant pairs, positive weight and negative weight of each group.

    ``starts`` are where runs of equal (group, score) begin in ``order_N``; ``group_starts`` where groups begin.
    """
    if len(order_N) == 0:
        return np.zeros(1), np.zeros(1), np.zeros(1)
    positive_N = (labels_N * weights_N)[order_N]
    positive = np.add.reduceat(positive_N, starts)
    negative = np.add.reduceat(weights_N[order_N] - positive_N, starts)
    first = np.searchsorted(starts, group_starts)
    before = np.cumsum(negative) - negative
    before -= np.repeat(before[first], np.diff(np.append(first, len(starts))))
    area_G = np.add.reduceat(positive * (before + negative / 2), first)
    return area_G, np.add.reduceat(positive, first), np.add.reduceat(negative, first)


def log_loss(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None) -> float:
    """Mean binary cross-entropy in nats."""
    logits_N = logits_N.astype(np.float64)
    return _mean(np.logaddexp(0.0, logits_N) - labels_N * logits_N, _weights(labels_N, weights_N))


def normalized_entropy(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None) -> float:
    """Log loss over that of predicting the mean label (He et al. 2014, "Practical Lessons from Predicting Clicks")."""
    rate = _mean(labels_N, _weights(labels_N, weights_N))
    if not 0 < rate < 1:
        return float("nan")
    entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    return log_loss(labels_N, logits_N, weights_N) / float(entropy)


def calibration_ratio(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None) -> float:
    """Expected positives over observed positives: 1 is calibrated, above 1 is too sure."""
    weights_N = _weights(labels_N, weights_N)
    observed = float(weights_N @ labels_N)
    return float(weights_N @ expit(logits_N.astype(np.float64))) / observed if observed > 0 else float("nan")


def reliability(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None, *, bins: int = 20) -> Reliability:
    """Mean probability against mean label in ``bins`` bins of (nearly) equal weight."""
    order_N = np.argsort(logits_N, kind="stable")
    weights_N = _weights(labels_N, weights_N)[order_N]
    reached_N = np.cumsum(weights_N)
    bin_N = np.minimum((bins * (reached_N - weights_N / 2) / reached_N[-1:]).astype(np.intp), bins - 1)
    weight_K: Floats = np.bincount(bin_N, weights_N, bins).astype(np.float64)
    probability_N = expit(logits_N[order_N].astype(np.float64))
    kept_K = weight_K > 0
    predicted_K = np.bincount(bin_N, weights_N * probability_N, bins)[kept_K] / weight_K[kept_K]
    observed_K = np.bincount(bin_N, weights_N * labels_N[order_N], bins)[kept_K] / weight_K[kept_K]
    return Reliability(predicted_K, observed_K, weight_K[kept_K])


def calibration_error(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None, *, bins: int = 20) -> float:
    """Expected calibration error: mean distance of the reliability plot from the diagonal."""
    points = reliability(labels_N, logits_N, weights_N, bins=bins)
    return _mean(np.abs(points.predicted_K - points.observed_K), points.weight_K)


def root_mean_squared_error(labels_N: Floats, predictions_N: Floats, weights_N: Floats | None = None) -> float:
    """Root of the mean squared distance between prediction and label."""
    return float(np.sqrt(_mean((predictions_N.astype(np.float64) - labels_N) ** 2, _weights(labels_N, weights_N))))


def poisson_deviance(labels_N: Floats, log_rates_N: Floats, weights_N: Floats | None = None) -> float:
    """Mean Poisson deviance of counts against predicted log rates."""
    labels_N, log_rates_N = labels_N.astype(np.float64), log_rates_N.astype(np.float64)
    fit_N = labels_N * (np.log(np.where(labels_N > 0, labels_N, 1.0)) - log_rates_N) - labels_N + np.exp(log_rates_N)
    return 2 * _mean(fit_N, _weights(labels_N, weights_N))


def ndcg_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> float:
    """Mean over groups of DCG@k over the best DCG@k; groups without positives are left out."""
    ndcg_G, weight_G = group_ndcg_at_k(labels_N, scores_N, groups_N, weights_N, k=k)
    defined_G = ~np.isnan(ndcg_G)
    return _mean(ndcg_G[defined_G], weight_G[defined_G])


def group_ndcg_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> tuple[Floats, Floats]:
    """NDCG@k (NaN where a group has no positives) and weight of each group, groups in sorted order."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    ideal = _Ranked(labels_N, labels_N, groups_N, weights_N)
    best_G = ideal.sum(np.where(ideal.rank_N < k, ideal.labels_N / np.log2(ideal.rank_N + 2), 0.0))
    found_G = ranked.sum(np.where(ranked.rank_N < k, ranked.labels_N / np.log2(ranked.rank_N + 2), 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return found_G / best_G, ranked.weight_G


def recall_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> float:
    """Mean over groups of the share of the group's positives among its first k (groups without positives: left out)."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    return ranked.mean(ranked.sum(np.where(ranked.rank_N < k, ranked.labels_N, 0.0)), ranked.sum(ranked.labels_N))


def hit_rate_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> float:
    """Share of the groups (that have positives) with a positive among their first k."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    hits_G = ranked.sum(np.where(ranked.rank_N < k, ranked.labels_N, 0.0))
    return ranked.mean((hits_G > 0).astype(np.float64), (ranked.sum(ranked.labels_N) > 0).astype(np.float64))


def mean_reciprocal_rank(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None
) -> float:
    """Mean over groups of 1 / rank of the first positive; groups without positives are left out."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    reciprocal_N = np.where(ranked.labels_N > 0, 1.0 / (ranked.rank_N + 1), 0.0)
    first_G = np.maximum.reduceat(reciprocal_N, ranked.starts) if len(reciprocal_N) else np.empty(0)
    return ranked.mean(first_G, (first_G > 0).astype(np.float64))


class _Ranked:
    """Rows sorted by group, then by falling score, with their rank within the group."""

    def __init__(self, labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None) -> None:
        group_N = np.unique(groups_N, return_inverse=True)[1]
        order_N = np.lexsort((labels_N, -scores_N, group_N))
        self.starts = _run_starts(group_N[order_N])
        self.labels_N = labels_N[order_N].astype(np.float64)
        sizes = np.diff(np.append(self.starts, len(order_N)))
        self.rank_N = np.arange(len(order_N)) - np.repeat(self.starts, sizes)
        self.weight_G = self.sum(_weights(labels_N, weights_N)[order_N]) / np.maximum(sizes, 1)

    def sum(self, values_N: Floats) -> Floats:
        return np.add.reduceat(values_N, self.starts) if len(values_N) else np.empty(0)

    def mean(self, numerator_G: Floats, denominator_G: Floats) -> float:
        kept_G = denominator_G > 0
        return _mean(numerator_G[kept_G] / denominator_G[kept_G], self.weight_G[kept_G])


def bootstrap(
    statistic: Callable[[Floats], float],
    clusters_N: Groups,
    *,
    draws: int = 200,
    seed: int = 0,
) -> Floats:
    """Draw ``statistic(weights_N)`` under resampling of whole clusters with replacement.

    Rows of one user are not independent: pass the users as ``clusters_N`` (or ``np.arange(N)`` to resample rows).

    Returns:
        (R,) the statistic of each draw.
    """
    cluster_N = np.unique(clusters_N, return_inverse=True)[1]
    clusters = int(cluster_N.max(initial=-1)) + 1
    generator = np.random.default_rng(seed)
    drawn_R = np.empty(draws)
    for draw in range(draws):
        counts = np.bincount(generator.integers(0, clusters, clusters), minlength=clusters).astype(np.float64)
        drawn_R[draw] = statistic(counts[cluster_N])
    return drawn_R


def interval(drawn_R: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws; draws in which the statistic is undefined are left out."""
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if len(drawn_R) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(drawn_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _weights(labels_N: Floats, weights_N: Floats | None) -> Floats:
    return np.ones(len(labels_N)) if weights_N is None else weights_N.astype(np.float64)


def _mean(values: Floats, weights: Floats) -> float:
    total = float(weights.sum())
    return float(weights @ values) / total if total > 0 else float("nan")


def _run_starts(sorted_values: Groups) -> Positions:
    """Where runs of equal values begin."""
    if len(sorted_values) == 0:
        return np.empty(0, np.intp)
    return np.flatnonzero(np.concatenate(([True], sorted_values[1:] != sorted_values[:-1])))
