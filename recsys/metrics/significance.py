"""Significance of differences between models: paired comparisons on the same test rows, over one or many arms.

Letters: N rows, U users (clusters), K models, S seeds, R bootstrap replicates.

Two things make a measured difference uncertain: which users happened to be in the test rows, and which seeds happened
to train the models. The first is measured by a bootstrap over users or, for AUC, by DeLong's variance; the second by
the spread over seeds. :func:`combine` puts both into one interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import special  # not scipy.stats, whose import takes every process more than a second

from recsys.metrics.arrays import Floats


@dataclass(frozen=True)
class Effect:
    """A difference between an arm and the base, with what is known about its uncertainty.

    Attributes:
        value: The difference, arm minus base, mean over seeds.
        low, high: Limits of the confidence interval.
        p_value: Two-sided, of "no difference".
        standard_error: Of ``value``; test rows and seeds together.
        freedom: Degrees of freedom (Welch-Satterthwaite).
        rows_variance: The part of ``standard_error**2`` that comes from the test rows. More seeds do not shrink it.
        seed_variance: Variance of the difference between seeds, of one seed.
    """

    value: float
    low: float
    high: float
    p_value: float
    standard_error: float
    freedom: float
    rows_variance: float
    seed_variance: float

    def at(self, level: float) -> "Effect":
        """The same with the interval of another confidence level."""
        if not self.standard_error > 0:
            return self
        reach = float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.standard_error
        return replace(self, low=self.value - reach, high=self.value + reach)


def delong(labels_N: ArrayLike, scores_KN: ArrayLike, clusters_N: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """AUC of K score vectors on the same rows, and the (K, K) covariance of the K estimates.

    The placement values come from midranks, in O(N log N) (Sun and Xu, 2014, doi:10.1109/LSP.2014.2337313), after
    DeLong et al., 1988. With ``clusters_N`` rows of one cluster may depend on each other (Obuchowski, 1997).

    Raises:
        ValueError: All labels are equal.
    """
    scores_KN = np.atleast_2d(np.asarray(scores_KN, dtype=np.float64))
    auc_K, influence_KN = zip(*(auc_influence(labels_N, scores_N) for scores_N in scores_KN), strict=True)
    if clusters_N is None:
        positive = np.asarray(labels_N) > 0.5
        counts_N = np.where(positive, positive.sum(), (~positive).sum())
        return np.array(auc_K), np.asarray(
            influence_KN * counts_N / np.maximum(counts_N - 1, 1) @ np.transpose(influence_KN)
        )
    clusters, index_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    sums_KU = np.stack([np.bincount(index_N.reshape(-1), weights=row) for row in influence_KN])
    return np.array(auc_K), np.asarray(sums_KU @ sums_KU.T * (len(clusters) / max(len(clusters) - 1, 1)))


def auc_influence(labels_N: ArrayLike, scores_N: ArrayLike, weights_N: Floats | None = None) -> tuple[float, Floats]:
    """AUC, and how much each row moves it: its placement value less the mean, over the rows of its class.

    With ``weights_N`` a row counts that many times, among the placements of others as well.

    Raises:
        ValueError: All labels are equal.
    """
    scores_N = np.asarray(scores_N, dtype=np.float64)
    positive = np.asarray(labels_N) > 0.5
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        raise ValueError("AUC needs rows of both labels")
    if weights_N is not None:
        return _weighted_influence(positive, scores_N, weights_N)
    rank_N = _midranks(scores_N)
    placements_N = np.empty(len(scores_N))
    placements_N[positive] = (rank_N[positive] - _midranks(scores_N[positive])) / negatives
    placements_N[~positive] = 1 - (rank_N[~positive] - _midranks(scores_N[~positive])) / positives
    auc = float(placements_N[positive].mean())
    return auc, (placements_N - auc) / np.where(positive, positives, negatives)


def _midranks(scores_N: Floats) -> Floats:
    """Ranks from 1; equal scores share the mean of their ranks."""
    return pl.Series(scores_N).rank("average").to_numpy()


def _weighted_influence(positive_N: NDArray[np.bool_], scores_N: Floats, weights_N: Floats) -> tuple[float, Floats]:
    classes_N = np.where(positive_N, 1, 0)
    total = np.bincount(classes_N, weights_N, 2)
    if not total.min() > 0:
        raise ValueError("AUC needs rows of both labels with weights above 0")
    _, tie_N = np.unique(scores_N, return_inverse=True)
    below_2K = np.zeros((2, int(tie_N.max()) + 1))
    np.add.at(below_2K, (classes_N, tie_N), weights_N)
    below_2K = np.cumsum(below_2K, axis=1) - below_2K / 2
    placements_N = np.where(positive_N, below_2K[0, tie_N] / total[0], 1 - below_2K[1, tie_N] / total[1])
    share_N = weights_N / total[classes_N]
    auc = float(share_N[positive_N] @ placements_N[positive_N])
    return auc, np.asarray((placements_N - auc) * share_N)


def pooled_seed_variance(differences_AS: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Variance between seeds that A arms have in common, and its degrees of freedom.

    With three seeds one arm's own variance is a poor guess (two degrees of freedom). The median of the arms' variances,
    put on the scale of a mean by the chi-squared median, is a steady one and is not moved by a few odd arms. One arm
    alone has no others to estimate from: (0, 0).
    """
    spread = [(np.var(row, ddof=1), len(row) - 1) for row in differences_AS if len(row) > 1]
    if len(spread) < 2:
        return 0.0, 0.0
    freedom = np.median([f for _, f in spread])
    variance = np.median([v for v, _ in spread]) * freedom / special.chdtri(freedom, 0.5)
    return float(variance), float(freedom * (len(spread) // 2))


def combine(
    differences_S: Sequence[float],
    rows_variance: float,
    *,
    prior: tuple[float, float] = (0.0, 0.0),
) -> Effect:
    """Mean difference over seeds with a 95% interval for the choice of test rows and seeds.

    Args:
        differences_S: The metric's difference, arm minus base, one number a seed.
        rows_variance: Variance of the mean difference from the choice of test rows, the seeds held fixed.
        prior: Variance between seeds that other arms suggest, and the degrees of freedom it is worth
            (:func:`pooled_seed_variance`). The arm's own variance is shrunk towards it (Smyth, 2004,
            doi:10.2202/1544-6115.1027).
    """
    differences = np.asarray(differences_S, dtype=np.float64)
    seeds = len(differences)
    own = float(np.var(differences, ddof=1)) if seeds > 1 else 0.0
    worth = seeds - 1 + prior[1]
    seed_variance = ((seeds - 1) * own + prior[1] * prior[0]) / worth if worth else 0.0
    value, parts = float(differences.mean()), (seed_variance / seeds, rows_variance)
    error = float(np.sqrt(sum(parts)))
    if not error > 0:
        return Effect(value, value, value, 1.0 if value == 0 else 0.0, 0.0, float("inf"), rows_variance, seed_variance)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / worth) if worth and parts[0] else float("inf")
    p_value = float(2 * special.stdtr(freedom, -abs(value) / error))
    effect = Effect(value, value, value, p_value, error, float(freedom), rows_variance, seed_variance)
    return effect.at(0.95)


def seeds_that_tell(effect: Effect, *, level: float = 0.95, power: float = 0.8, at_most: int = 1000) -> int | None:
    """The number of seeds at which an effect of this size would be found, or ``None`` where no number would.

    ``None`` means that the test rows alone are too few: their share of the variance does not shrink with seeds.
    """
    if effect.value == 0:
        return None
    room = (effect.value / (special.ndtri((1 + level) / 2) + special.ndtri(power))) ** 2 - effect.rows_variance
    if room <= 0:
        return None
    needed = max(2, int(np.ceil(effect.seed_variance / room)))
    return needed if needed <= at_most else None


def holm(p_values: ArrayLike) -> Floats:
    """P-values adjusted after Holm (1979): the chance of any false finding among all stays below the level."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _in_place_of(order, adjusted)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """P-values adjusted after Benjamini and Hochberg (1995): the share of false findings stays below the level."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _in_place_of(order, np.minimum.accumulate(scaled[::-1])[::-1])


def _in_place_of(order: NDArray[np.int64], adjusted: Floats) -> Floats:
    result = np.empty_like(adjusted)
    result[order] = np.minimum(adjusted, 1.0)
    return result
