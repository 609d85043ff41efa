"""What each value of a category adds to a logit, beside a score that stands for all else, with intervals.

Letters: N rows, V values, C clusters, D = V + 1 coefficients.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from recsys.metrics.arrays import Floats, Indices

_LEAST = 5
"""Rows of each label that a value must have."""
_STEPS = 50
_CONVERGED = 1e-10
_Z = 1.959963984540054


class LevelEffects(NamedTuple):
    """(V,) effects, and the limits of their 95% intervals; NaN for values with too few rows."""

    value: Floats
    low: Floats
    high: Floats


def level_effects(
    labels_N: Floats,
    scores_N: Floats,
    level_N: Indices,
    clusters_N: Indices,
    *,
    base: int,
    levels: int,
    weights_N: Floats | None = None,
) -> LevelEffects:
    """Logistic regression of labels on a score and on the value of a category.

    The score has a coefficient of its own, so a score that is too sure, or that goes with the category, does not make
    the intervals too narrow. Rows of one cluster may depend on each other (a sandwich; Liang and Zeger, 1986).

    Args:
        labels_N: 0 or 1.
        scores_N: Logits that leave out what the category adds.
        level_N: The value of each row, from 0; negative for rows to leave out.
        clusters_N: The cluster of each row: its user or its list.
        base: The value that the others are compared with; its effect is 0.
        levels: V.
        weights_N: How much each row counts.
    """
    nothing = LevelEffects(*np.full((3, levels), np.nan))
    known_N = level_N >= 0
    positives_V = np.bincount(level_N[known_N], labels_N[known_N], levels)
    rows_V = np.bincount(level_N[known_N], minlength=levels)
    told_V = np.minimum(positives_V, rows_V - positives_V) >= _LEAST
    if not told_V[base] or told_V.sum() < 2:
        return nothing
    used_N = known_N & told_V[np.maximum(level_N, 0)]
    others = np.flatnonzero(told_V & (np.arange(levels) != base))
    column_V = np.full(levels, -1)
    column_V[others] = np.arange(len(others))
    column_N, y_N = column_V[level_N[used_N]], labels_N[used_N].astype(np.float64)
    x_ND = np.zeros((len(y_N), 2 + len(others)))
    x_ND[:, 0], x_ND[:, 1] = 1, scores_N[used_N]
    inside_N = column_N >= 0
    x_ND[np.flatnonzero(inside_N), 2 + column_N[inside_N]] = 1
    own_N = np.ones(len(y_N)) if weights_N is None else weights_N[used_N].astype(np.float64)
    beta_D = _fit(x_ND, y_N, own_N)
    if beta_D is None:
        return nothing
    error_D = _robust_errors(x_ND, y_N, own_N, beta_D, clusters_N[used_N])
    value_V, error_V = np.full(levels, np.nan), np.full(levels, np.nan)
    value_V[base], error_V[base] = 0.0, 0.0
    value_V[others], error_V[others] = beta_D[2:], error_D[2:]
    return LevelEffects(value_V, value_V - _Z * error_V, value_V + _Z * error_V)


def _fit(x_ND: Floats, y_N: Floats, weights_N: Floats) -> Floats | None:
    """(D,) coefficients of a logistic regression by Newton's method; ``None`` if it does not converge."""
    beta_D = np.zeros(x_ND.shape[1])
    beta_D[1] = 1.0
    for _ in range(_STEPS):
        p_N = expit(x_ND @ beta_D)
        gradient_D = x_ND.T @ (weights_N * (y_N - p_N))
        step_D = np.linalg.lstsq((x_ND * (weights_N * p_N * (1 - p_N))[:, None]).T @ x_ND, gradient_D, rcond=None)[0]
        beta_D = beta_D + step_D
        if not np.isfinite(beta_D).all():
            return None
        if float(np.abs(step_D).max()) < _CONVERGED:
            return np.asarray(beta_D)
    return None


def _robust_errors(x_ND: Floats, y_N: Floats, weights_N: Floats, beta_D: Floats, clusters_N: Indices) -> Floats:
    """(D,) standard errors from the sums of scores over clusters (a sandwich)."""
    p_N = expit(x_ND @ beta_D)
    bread_DD = np.linalg.pinv((x_ND * (weights_N * p_N * (1 - p_N))[:, None]).T @ x_ND)
    _, cluster_N = np.unique(clusters_N, return_inverse=True)
    score_CD = np.zeros((int(cluster_N.max()) + 1, x_ND.shape[1]))
    np.add.at(score_CD, cluster_N.reshape(-1), x_ND * (weights_N * (y_N - p_N))[:, None])
    clusters = len(score_CD)
    covariance_DD = bread_DD @ (score_CD.T @ score_CD) @ bread_DD * (clusters / max(clusters - 1, 1))
    return np.asarray(np.sqrt(np.maximum(np.diag(covariance_DD), 0.0)))
