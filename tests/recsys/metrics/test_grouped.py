"""Metrics within groups beside slow references and scikit-learn, over rows with ties and empty groups."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_rows import ROWS, columns, slow_auc
from sklearn.metrics import ndcg_score

from recsys.metrics import grouped as metrics


@given(ROWS)
def test_gauc_is_the_row_weighted_mean_of_the_groups_aucs(rows):
    labels, scores, groups, weights = columns(rows)
    parts = [(slow_auc(labels[m], scores[m], weights[m]), weights[m].sum()) for g in set(groups) for m in [groups == g]]
    parts = [(value, weight) for value, weight in parts if not math.isnan(value)]
    expected = sum(v * w for v, w in parts) / sum(w for _, w in parts) if parts else math.nan
    assert metrics.gauc(labels, scores, groups, weights) == pytest.approx(expected, nan_ok=True)


@given(ROWS)
def test_weights_count_rows(rows):
    labels, scores, groups, weights = columns(rows)
    repeated = np.repeat(np.arange(len(labels)), weights.astype(int))
    if len(repeated):
        assert metrics.gauc(labels, scores, groups, weights) == pytest.approx(
            metrics.gauc(labels[repeated], scores[repeated], groups[repeated]), nan_ok=True
        )


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-5, 5)), min_size=2, max_size=30, unique_by=lambda row: row[1]))
def test_ndcg_agrees_with_sklearn_where_no_scores_tie(rows):
    labels, scores = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    if labels.any():
        expected = ndcg_score(labels[None], scores[None], k=5)
        assert metrics.ndcg_at_k(labels, scores, np.zeros(len(labels)), k=5) == pytest.approx(expected)


def test_ranking_metrics_by_hand():
    labels = np.array([0.0, 1, 0, 1, 0, 0, 1])
    scores = np.array([0.9, 0.8, 0.1, 0.7, 0.5, 0.4, 0.3])
    groups = np.array(["a", "a", "a", "a", "b", "b", "b"])
    assert metrics.recall_at_k(labels, scores, groups, k=2) == pytest.approx((1 / 2 + 0) / 2)
    assert metrics.hit_rate_at_k(labels, scores, groups, k=2) == pytest.approx(1 / 2)
    assert metrics.mean_reciprocal_rank(labels, scores, groups) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_constant_score_gains_nothing_in_the_ranking_metrics():
    labels, groups = np.array([1.0, 0, 0]), np.zeros(3)
    assert metrics.hit_rate_at_k(labels, np.zeros(3), groups, k=1) == 0


def test_groups_without_positives_are_left_out_of_the_ranking_metrics():
    labels, scores, groups = np.array([0.0, 0, 1]), np.array([1.0, 2, 3]), np.array([0, 0, 1])
    assert metrics.ndcg_at_k(labels, scores, groups) == 1
    assert math.isnan(metrics.ndcg_at_k(labels[:2], scores[:2], groups[:2]))


@given(ROWS)
def test_rows_of_no_group_are_left_out(rows):
    labels, scores, groups, weights = columns(rows)
    codes = groups.astype(int) - 1
    kept = codes >= 0
    for metric in (metrics.gauc, metrics.ndcg_at_k, metrics.recall_at_k, metrics.mean_reciprocal_rank):
        alone = metric(labels[kept], scores[kept], codes[kept], weights[kept])
        assert metric(labels, scores, codes, weights) == pytest.approx(alone, nan_ok=True)
