"""Metrics of regressions and counts.

Letters: N rows. ``weights_N`` counts a row that many times. Without rows a metric is NaN.
"""

import numpy as np

from models.layers.heads import TaskKind
from recsys.metrics.arrays import Floats, row_weights, weighted_mean
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.metric import Metric


def root_mean_squared_error(labels_N: Floats, predictions_N: Floats, weights_N: Floats | None = None) -> float:
    """Root of the mean squared distance between prediction and label."""
    return float(
        np.sqrt(weighted_mean((predictions_N.astype(np.float64) - labels_N) ** 2, row_weights(labels_N, weights_N)))
    )


def poisson_deviance(labels_N: Floats, log_rates_N: Floats, weights_N: Floats | None = None) -> float:
    """Mean Poisson deviance of counts against predicted log rates."""
    return 2 * weighted_mean(_half_deviance(labels_N, log_rates_N), row_weights(labels_N, weights_N))


def _half_deviance(labels_N: Floats, log_rates_N: Floats) -> Floats:
    labels_N, log_rates_N = labels_N.astype(np.float64), log_rates_N.astype(np.float64)
    return labels_N * (np.log(np.where(labels_N > 0, labels_N, 1.0)) - log_rates_N) - labels_N + np.exp(log_rates_N)


def _rmse_draws(labels_N: Floats, predictions_N: Floats, resampling: Resampling) -> Floats:
    squares_N = (predictions_N.astype(np.float64) - labels_N) ** 2
    return np.asarray(np.sqrt(resampling.ratio(squares_N, np.ones(len(labels_N)))))


def _deviance_draws(labels_N: Floats, log_rates_N: Floats, resampling: Resampling) -> Floats:
    return np.asarray(2 * resampling.ratio(_half_deviance(labels_N, log_rates_N), np.ones(len(labels_N))))


_COUNTS: tuple[TaskKind, ...] = ("count", "duration")
POISSON_DEVIANCE = Metric(
    "deviance",
    "Poisson deviance",
    _COUNTS,
    poisson_deviance,
    better="lower",
    headline=True,
    draws=_deviance_draws,
)
RMSE = Metric(
    "rmse",
    "RMSE",
    ("regression", *_COUNTS, "ordinal"),
    root_mean_squared_error,
    better="lower",
    reads="predictions",
    headline=True,
    draws=_rmse_draws,
)
