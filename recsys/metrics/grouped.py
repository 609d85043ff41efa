"""Metrics within groups of rows (users, or lists that were shown), averaged over the groups.

Letters: N rows, G groups. ``groups_N`` holds the group of each row; rows of a negative code belong to no group and are
left out. ``weights_N`` counts a row that many times. Groups for which a metric is undefined (one class, no positives)
are left out; without any group it is NaN.

Ties: the ranking metrics put the negatives of a tie first, so that a constant score gains nothing.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from recsys.metrics.arrays import Floats, Groups, in_a_group, row_weights, run_starts, weighted_mean
from recsys.metrics.binary import BINARY, concordant_areas
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.metric import Metric
from recsys.metrics.rows import GroupKind

GroupValues = tuple[Floats, Floats]
"""(G,) a value per group, NaN where it is undefined, and (G,) the weight of each group; groups in sorted order."""

TOP_K = (1, 5, 10)
"""Cut-offs of NDCG, recall and hit rate."""


def gauc(labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None) -> float:
    """Mean over groups of the AUC within the group, weighted by rows; groups of one class are left out."""
    return _mean_over(group_auc, labels_N, scores_N, groups_N, weights_N)


def ndcg_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> float:
    """Mean over groups of DCG@k over the best DCG@k; groups without positives are left out."""
    return _mean_over(partial(group_ndcg_at_k, k=k), labels_N, scores_N, groups_N, weights_N)


def recall_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> float:
    """Mean over groups of the share of the group's positives among its first k (groups without positives: left out)."""
    return _mean_over(partial(group_recall_at_k, k=k), labels_N, scores_N, groups_N, weights_N)


def hit_rate_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> float:
    """Share of the groups (that have positives) with a positive among their first k."""
    return _mean_over(partial(group_hit_at_k, k=k), labels_N, scores_N, groups_N, weights_N)


def mean_reciprocal_rank(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None
) -> float:
    """Mean over groups of 1 / rank of the first positive; groups without positives are left out."""
    return _mean_over(group_reciprocal_rank, labels_N, scores_N, groups_N, weights_N)


def group_auc(labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None) -> GroupValues:
    """AUC and weight of each group; NaN where one class is missing."""
    if len(labels_N) == 0:
        return np.empty(0), np.empty(0)
    group_N = np.unique(groups_N, return_inverse=True)[1]
    weights_N = row_weights(labels_N, weights_N)
    order_N = np.lexsort((scores_N, group_N))
    group_starts = run_starts(group_N[order_N])
    starts = np.union1d(group_starts, run_starts(scores_N[order_N]))
    area_G, positives_G, negatives_G = concordant_areas(labels_N, weights_N, order_N, starts, group_starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return area_G / (positives_G * negatives_G), positives_G + negatives_G


def group_ndcg_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> GroupValues:
    """NDCG@k and weight of each group; NaN where a group has no positives."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    ideal = _Ranked(labels_N, labels_N, groups_N, weights_N)
    best_G = ideal.sum(np.where(ideal.rank_N < k, ideal.labels_N / np.log2(ideal.rank_N + 2), 0.0))
    found_G = ranked.sum(np.where(ranked.rank_N < k, ranked.labels_N / np.log2(ranked.rank_N + 2), 0.0))
    return ranked.shares(found_G, best_G)


def group_recall_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> GroupValues:
    """Recall@k and weight of each group; NaN where a group has no positives."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    return ranked.shares(ranked.sum(np.where(ranked.rank_N < k, ranked.labels_N, 0.0)), ranked.sum(ranked.labels_N))


def group_hit_at_k(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None, *, k: int = 10
) -> GroupValues:
    """Whether a group has a positive among its first k (1 or 0), and its weight; NaN where it has no positives."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    hits_G = ranked.sum(np.where(ranked.rank_N < k, ranked.labels_N, 0.0))
    return ranked.shares((hits_G > 0).astype(np.float64), (ranked.sum(ranked.labels_N) > 0).astype(np.float64))


def group_reciprocal_rank(
    labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None
) -> GroupValues:
    """1 / rank of the first positive of each group, and its weight; NaN where a group has no positives."""
    ranked = _Ranked(labels_N, scores_N, groups_N, weights_N)
    reciprocal_N = np.where(ranked.labels_N > 0, 1.0 / (ranked.rank_N + 1), 0.0)
    first_G = np.maximum.reduceat(reciprocal_N, ranked.starts) if len(reciprocal_N) else np.empty(0)
    return ranked.shares(first_G, (first_G > 0).astype(np.float64))


def equal_lists(of_groups: Callable[..., GroupValues], **options: int) -> Callable[..., GroupValues]:
    """``of_groups`` with the mean weight of a group's rows instead of the sum, so that all groups count the same.

    (The weights of AUC are sums over the rows of a group, those of the ranking metrics are means already.)
    """

    def values(labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None = None) -> GroupValues:
        value_G, _ = of_groups(labels_N, scores_N, groups_N, weights_N, **options)
        group_N = np.unique(groups_N, return_inverse=True)[1]
        weights_N = row_weights(labels_N, weights_N)
        return value_G, np.bincount(group_N, weights_N) / np.maximum(np.bincount(group_N), 1)

    return values


class _Ranked:
    """Rows sorted by group, then in descending order of score, with their rank within the group."""

    def __init__(self, labels_N: Floats, scores_N: Floats, groups_N: Groups, weights_N: Floats | None) -> None:
        group_N = np.unique(groups_N, return_inverse=True)[1]
        order_N = np.lexsort((labels_N, -scores_N, group_N))
        self.starts = run_starts(group_N[order_N])
        self.labels_N = labels_N[order_N].astype(np.float64)
        sizes = np.diff(np.append(self.starts, len(order_N)))
        self.rank_N = np.arange(len(order_N)) - np.repeat(self.starts, sizes)
        self.weight_G = self.sum(row_weights(labels_N, weights_N)[order_N]) / np.maximum(sizes, 1)

    def sum(self, values_N: Floats) -> Floats:
        return np.add.reduceat(values_N, self.starts) if len(values_N) else np.empty(0)

    def shares(self, numerator_G: Floats, denominator_G: Floats) -> GroupValues:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(denominator_G > 0, numerator_G / denominator_G, np.nan), self.weight_G


def _mean_over(
    of_groups: Callable[..., GroupValues],
    labels_N: Floats,
    scores_N: Floats,
    groups_N: Groups,
    weights_N: Floats | None,
) -> float:
    kept_N = in_a_group(groups_N)
    weights_N = None if weights_N is None else weights_N[kept_N]
    value_G, weight_G = of_groups(labels_N[kept_N], scores_N[kept_N], groups_N[kept_N], weights_N)
    defined_G = ~np.isnan(value_G)
    return weighted_mean(value_G[defined_G], weight_G[defined_G])


def grouped_metric(
    name: str,
    label: str,
    of_groups: Callable[..., GroupValues],
    *,
    groups: GroupKind = "users",
    routine: bool = False,
    headline: bool = False,
) -> Metric:
    """The metric that is the mean of ``of_groups`` over the groups, by their weights.

    Args:
        of_groups: ``of_groups(labels_N, scores_N, groups_N, weights_N)`` gives :data:`GroupValues`.
        groups: What the rows are grouped by.
    """

    def draws(labels_N: Floats, scores_N: Floats, resampling: Resampling) -> Floats:
        groups_N = resampling.groups(groups)
        assert groups_N is not None
        kept_N = groups_N >= 0
        weights_N = None if resampling.weights_N is None else resampling.weights_N[kept_N]
        found = of_groups(labels_N[kept_N], scores_N[kept_N], groups_N[kept_N], weights_N)
        return resampling.group_mean(*found, groups_N)

    return Metric(
        name,
        label,
        BINARY,
        partial(_mean_over, of_groups),
        needs_groups=True,
        groups=groups,
        routine=routine,
        headline=headline,
        draws=draws,
    )


GAUC = grouped_metric("gauc", "GAUC", group_auc, routine=True, headline=True)
MRR = grouped_metric("mrr", "MRR", group_reciprocal_rank)
RANKING = [
    grouped_metric(f"{name}@{k}", f"{label}@{k}", partial(of_groups, k=k), headline=name == "ndcg" and k == 10)
    for k in TOP_K
    for name, label, of_groups in (
        ("ndcg", "NDCG", group_ndcg_at_k),
        ("recall", "recall", group_recall_at_k),
        ("hit", "hit rate", group_hit_at_k),
    )
]

LIST_K = 10
"""Cut-off of the metrics of lists."""
LIST_METRICS = [
    grouped_metric(
        f"list_ndcg@{LIST_K}",
        f"NDCG@{LIST_K} of lists",
        equal_lists(group_ndcg_at_k, k=LIST_K),
        groups="lists",
        routine=True,
        headline=True,
    ),
    grouped_metric(
        "list_mrr", "MRR of lists", equal_lists(group_reciprocal_rank), groups="lists", routine=True, headline=True
    ),
    grouped_metric(
        f"list_recall@{LIST_K}", f"recall@{LIST_K} of lists", equal_lists(group_recall_at_k, k=LIST_K), groups="lists"
    ),
    grouped_metric("list_auc", "AUC of lists", equal_lists(group_auc), groups="lists", routine=True, headline=True),
]
"""Means over lists; the weight of a list is the mean weight of its rows."""
