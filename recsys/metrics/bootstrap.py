"""The bootstrap over whole clusters of rows, shared by everything that is compared on these rows.

Letters: N rows, U clusters (users, or single rows), R draws, r draws of one block.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.metrics.arrays import Floats, Indices, in_a_group
from recsys.metrics.rows import GroupKind

_CELLS = 1 << 18
_KEPT_CELLS = 1 << 26
"""Draws of at most so many numbers are kept; larger ones are drawn again, block by block, for every metric."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def interval(drawn_R: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws; draws in which the statistic is undefined are left out."""
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if len(drawn_R) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(drawn_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


class Resampling:
    """Draws of whole clusters with replacement, the same for every model and metric that uses this object.

    Rows of one user are not independent, so users are drawn with all their rows. A row of no user (a negative code) is
    a cluster by itself, and belongs to no group.

    Args:
        users_N: The code of each row's user; ``None`` draws lists, or single rows where there are none.
        rows: How many rows there are.
        lists_N: The code of the list that each row was shown in, if there are any.
        weights_N: How much each row counts; all alike if ``None``.
        draws: Number of draws.
        seed: Same seed, same draws.

    Attributes:
        cluster_N: The cluster of each row, 0 to ``clusters - 1``.
        group_N: The same for rows of a user, -1 for others; ``None`` without users.
        list_N: The list of each row, 0 to the number of lists less 1, and -1 for rows of none; ``None`` without lists.
        weights_N: How much each row counts; ``None`` where all count alike.
    """

    def __init__(
        self,
        users_N: ArrayLike | None,
        rows: int,
        *,
        lists_N: ArrayLike | None = None,
        weights_N: Floats | None = None,
        draws: int = 400,
        seed: int = 0,
    ) -> None:
        self._draws, self._seed = draws, seed
        self.weights_N = weights_N
        self.list_N: Indices | None = None if lists_N is None else _codes(np.asarray(lists_N))
        self.group_N: Indices | None = None
        self.cluster_N: Indices = np.arange(rows)
        if users_N is not None:
            self.group_N = _codes(np.asarray(users_N))
        drawn_N = self.list_N if self.group_N is None else self.group_N
        if drawn_N is not None:
            alone_N = drawn_N < 0
            self.cluster_N = drawn_N.copy()
            self.cluster_N[alone_N] = drawn_N.max(initial=-1) + 1 + np.arange(int(alone_N.sum()))

    def groups(self, kind: GroupKind) -> Indices | None:
        """The group of each row: its user, or its list."""
        return self.group_N if kind == "users" else self.list_N

    @property
    def users(self) -> int:
        """Number of users; of rows, without users."""
        return int((self.cluster_N if self.group_N is None else self.group_N).max(initial=-1)) + 1

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.cluster_N.max(initial=-1)) + 1

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(r, U) how often each cluster was drawn; all blocks together are the R draws."""
        if self._draws * self.clusters <= _KEPT_CELLS:
            yield self._kept
            return
        generator, step = np.random.default_rng(self._seed), max(1, _KEPT_CELLS // self.clusters)
        for start in range(0, self._draws, step):
            yield _drawn(generator, self.clusters, min(step, self._draws - start))

    @cached_property
    def _kept(self) -> NDArray[np.float32]:
        return bootstrap_weights(self.clusters, self._draws, self._seed)

    def apply(self, statistic: Callable[[Floats], float]) -> Floats:
        """(R,) ``statistic(weights_N)`` of every draw: works for any statistic that can count a row several times."""
        own_N = 1.0 if self.weights_N is None else self.weights_N
        drawn_N = (draw_U[self.cluster_N].astype(np.float64) for block in self.blocks() for draw_U in block)
        return np.array([statistic(draw_N * own_N) for draw_N in drawn_N])

    def ratio(self, numerator_N: ArrayLike, denominator_N: ArrayLike) -> Floats:
        """(R,) the ratio of two weighted sums over rows, such as a mean or a calibration ratio."""
        if self.weights_N is not None:
            numerator_N = np.asarray(numerator_N) * self.weights_N
            denominator_N = np.asarray(denominator_N) * self.weights_N
        return self._ratio(numerator_N, denominator_N, self.cluster_N)

    def group_mean(self, value_G: Floats, weight_G: Floats, groups_N: Indices) -> Floats:
        """(R,) the weighted mean over groups; groups of value NaN are left out.

        Args:
            value_G: A value per group, groups in ascending order of their codes.
            weight_G: The weight of each group.
            groups_N: The code of each row's group: of its user or its list; negative for none. A group is drawn with
                the cluster of its first row.
        """
        weight_G = np.where(np.isnan(value_G), 0.0, weight_G)
        codes_G, first_G = np.unique(groups_N, return_index=True)
        cluster_G = self.cluster_N[first_G[codes_G >= 0]]
        return self._ratio(np.nan_to_num(value_G) * weight_G, weight_G, cluster_G)

    def auc(self, labels_N: Floats, scores_N: Floats) -> Floats:
        """(R,) the area under the ROC curve; rows are sorted once for all draws."""
        weights_N = self.weights_N
        blocks = (bootstrap_auc(labels_N, scores_N, self.cluster_N, block, weights_N) for block in self.blocks())
        return np.concatenate(list(blocks))

    def _ratio(self, top: ArrayLike, bottom: ArrayLike, index: Indices) -> Floats:
        sums = (bootstrap_ratio(top, bottom, index, block) for block in self.blocks())
        return np.concatenate(list(sums))


def _codes(values_N: NDArray[np.generic]) -> Indices:
    """(N,) numbers from 0 for distinct values, in sorted order; -1 for rows of no group."""
    known_N = in_a_group(values_N)
    codes_N: Indices = np.full(len(values_N), -1, dtype=np.int64)
    codes_N[known_N] = np.unique(values_N[known_N], return_inverse=True)[1].reshape(-1)
    return codes_N


def bootstrap(
    statistic: Callable[[Floats], float], clusters_N: ArrayLike, *, draws: int = 200, seed: int = 0
) -> Floats:
    """(R,) ``statistic(weights_N)`` under resampling of whole clusters with replacement.

    Args:
        clusters_N: The cluster of each row: users, or ``np.arange(N)`` to draw single rows.
    """
    clusters = np.asarray(clusters_N)
    return Resampling(clusters, len(clusters), draws=draws, seed=seed).apply(statistic)


def bootstrap_weights(clusters: int, replicates: int, seed: int = 0) -> NDArray[np.float32]:
    """(R, U) how often each of U clusters was drawn, R times U draws with replacement."""
    return _drawn(np.random.default_rng(seed), clusters, replicates)


def _drawn(generator: np.random.Generator, clusters: int, replicates: int) -> NDArray[np.float32]:
    drawn = (generator.integers(0, clusters, clusters) for _ in range(replicates))
    return np.stack([np.bincount(draw, minlength=clusters) for draw in drawn]).astype(np.float32)


def bootstrap_auc(
    labels_N: ArrayLike,
    scores_N: ArrayLike,
    index_N: Indices,
    draws_RU: NDArray[np.float32],
    weights_N: Floats | None = None,
) -> Floats:
    """(R,) AUC of each replicate; ``index_N`` is each row's cluster. Rows are sorted once, for all replicates."""
    scores_N = np.asarray(scores_N, dtype=np.float64)
    order_N = np.argsort(scores_N, kind="stable")
    positive_N = np.asarray(labels_N)[order_N] > 0.5
    rows_N = index_N[order_N]
    ties = np.flatnonzero(np.diff(scores_N[order_N], prepend=np.nan) != 0)
    replicates, result_R = len(draws_RU), np.full(len(draws_RU), np.nan)
    step = max(1, _CELLS // max(len(rows_N), 1))
    for start in range(0, replicates if len(rows_N) else 0, step):
        weights_RN = draws_RU[start : start + step, rows_N].astype(np.float64)
        if weights_N is not None:
            weights_RN *= weights_N[order_N]
        positive_RG = np.add.reduceat(weights_RN * positive_N, ties, axis=1)
        negative_RG = np.add.reduceat(weights_RN * ~positive_N, ties, axis=1)
        below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
        pairs_R = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
        wins_R = (positive_RG * below_RG).sum(axis=1)
        result_R[start : start + step] = np.divide(wins_R, pairs_R, out=np.full_like(wins_R, np.nan), where=pairs_R > 0)
    return result_R


def bootstrap_ratio(
    numerator_N: ArrayLike, denominator_N: ArrayLike, index_N: Indices, draws_RU: NDArray[np.float32]
) -> Floats:
    """(R,) ratio of two sums over rows of each replicate: a mean, a calibration ratio, a GAUC, an NDCG."""
    clusters = draws_RU.shape[1]
    top_U = np.bincount(index_N, weights=np.asarray(numerator_N, dtype=np.float64), minlength=clusters)
    bottom_U = np.bincount(index_N, weights=np.asarray(denominator_N, dtype=np.float64), minlength=clusters)
    top_R, bottom_R = draws_RU @ top_U, draws_RU @ bottom_U
    ratio_R: Floats = np.divide(top_R, bottom_R, out=np.full(len(top_R), np.nan), where=bottom_R != 0)
    return ratio_R
