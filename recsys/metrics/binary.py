"""Metrics of probability and order for binary tasks, as plain vectorised NumPy.

Letters: N rows, K bins, G groups. ``labels_N`` are 0 or 1, ``scores_N`` any numbers that order rows, ``logits_N``
log-odds. ``weights_N`` counts a row that many times. A metric that is undefined (one class only, no rows) is NaN.

Ties: AUC counts them one half.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from models.layers.heads import TaskKind
from recsys.metrics.arrays import Floats, Positions, row_weights, run_starts, weighted_mean
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.metric import Metric
from recsys.metrics.significance import auc_influence


class Reliability(NamedTuple):
    """Points of a reliability plot: mean probability, mean label and weight of each bin of equal mass."""

    predicted_K: Floats
    observed_K: Floats
    weight_K: Floats


def auc(labels_N: Floats, scores_N: Floats, weights_N: Floats | None = None) -> float:
    """Area under the ROC curve."""
    order_N = np.argsort(scores_N, kind="stable")
    starts = run_starts(scores_N[order_N])
    area, positives, negatives = concordant_areas(
        labels_N, row_weights(labels_N, weights_N), order_N, starts, np.array([0])
    )
    return float(area[0] / (positives[0] * negatives[0])) if positives[0] * negatives[0] > 0 else float("nan")


def concordant_areas(
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
    return weighted_mean(np.logaddexp(0.0, logits_N) - labels_N * logits_N, row_weights(labels_N, weights_N))


def normalized_entropy(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None) -> float:
    """Log loss divided by that of the mean label (He et al. 2014, "Practical Lessons from Predicting Clicks")."""
    rate = weighted_mean(labels_N, row_weights(labels_N, weights_N))
    if not 0 < rate < 1:
        return float("nan")
    entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    return log_loss(labels_N, logits_N, weights_N) / float(entropy)


def calibration_ratio(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None) -> float:
    """Expected positives divided by observed positives: 1 is calibrated, above 1 is overconfident."""
    weights_N = row_weights(labels_N, weights_N)
    observed = float(weights_N @ labels_N)
    return float(weights_N @ expit(logits_N.astype(np.float64))) / observed if observed > 0 else float("nan")


def reliability(labels_N: Floats, logits_N: Floats, weights_N: Floats | None = None, *, bins: int = 20) -> Reliability:
    """Mean probability against mean label in ``bins`` bins of (nearly) equal weight."""
    order_N = np.argsort(logits_N, kind="stable")
    weights_N = row_weights(labels_N, weights_N)[order_N]
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
    return weighted_mean(np.abs(points.predicted_K - points.observed_K), points.weight_K)


def _log_loss_draws(labels_N: Floats, logits_N: Floats, resampling: Resampling) -> Floats:
    logits_N = logits_N.astype(np.float64)
    return resampling.ratio(np.logaddexp(0.0, logits_N) - labels_N * logits_N, np.ones(len(labels_N)))


def _normalized_entropy_draws(labels_N: Floats, logits_N: Floats, resampling: Resampling) -> Floats:
    rate_R = resampling.ratio(labels_N, np.ones(len(labels_N)))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_R = -rate_R * np.log(rate_R) - (1 - rate_R) * np.log1p(-rate_R)
        return np.asarray(_log_loss_draws(labels_N, logits_N, resampling) / entropy_R)


def _calibration_draws(labels_N: Floats, logits_N: Floats, resampling: Resampling) -> Floats:
    return resampling.ratio(expit(logits_N.astype(np.float64)), labels_N)


def _auc_draws(labels_N: Floats, scores_N: Floats, resampling: Resampling) -> Floats:
    return resampling.auc(labels_N, scores_N)


BINARY: tuple[TaskKind, ...] = ("binary",)
AUC = Metric("auc", "AUC", BINARY, auc, headline=True, draws=_auc_draws, influence=auc_influence)
LOG_LOSS = Metric("logloss", "log loss", BINARY, log_loss, better="lower", headline=True, draws=_log_loss_draws)
NORMALIZED_ENTROPY = Metric(
    "ne",
    "normalised entropy",
    BINARY,
    normalized_entropy,
    better="lower",
    headline=True,
    draws=_normalized_entropy_draws,
)
CALIBRATION = Metric(
    "calibration",
    "calibration",
    BINARY,
    calibration_ratio,
    better="closest to 1",
    headline=True,
    draws=_calibration_draws,
)
CALIBRATION_ERROR = Metric("ece", "calibration error", BINARY, calibration_error, better="lower", routine=False)
