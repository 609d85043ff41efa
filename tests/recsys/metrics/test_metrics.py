"""Every metric beside a slow reference, over hypothesis's arrays with ties, single classes and empty groups."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from recsys.metrics import metrics

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40
)


def columns(rows):
    labels, scores, groups, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return labels, scores, groups, weights


def slow_auc(labels, scores, weights):
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    pairs = sum(weights[i] * weights[j] for i, j in product(positive, negative))
    if pairs == 0:
        return math.nan
    won = sum(
        weights[i] * weights[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
        for i, j in product(positive, negative)
    )
    return won / pairs


@given(ROWS)
def test_auc_counts_concordant_pairs(rows):
    labels, scores, _, weights = columns(rows)
    assert metrics.auc(labels, scores, weights) == pytest.approx(slow_auc(labels, scores, weights), nan_ok=True)


@given(ROWS)
def test_auc_agrees_with_sklearn(rows):
    labels, scores, _, _ = columns(rows)
    if 0 < labels.mean() < 1:
        assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


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
    for metric in (metrics.auc, metrics.log_loss, metrics.normalized_entropy, metrics.calibration_ratio):
        if len(repeated):
            assert metric(labels, scores, weights) == pytest.approx(
                metric(labels[repeated], scores[repeated]), nan_ok=True
            )
    if len(repeated):
        assert metrics.gauc(labels, scores, groups, weights) == pytest.approx(
            metrics.gauc(labels[repeated], scores[repeated], groups[repeated]), nan_ok=True
        )


@given(ROWS)
def test_log_loss_agrees_with_sklearn(rows):
    labels, logits, _, _ = columns(rows)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = sklearn_log_loss(labels, probabilities, labels=[0, 1])
    assert metrics.log_loss(labels, logits) == pytest.approx(expected)


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


def test_a_constant_score_earns_nothing_in_the_ranking_metrics():
    labels, groups = np.array([1.0, 0, 0]), np.zeros(3)
    assert metrics.hit_rate_at_k(labels, np.zeros(3), groups, k=1) == 0


def test_groups_without_positives_are_left_out_of_the_ranking_metrics():
    labels, scores, groups = np.array([0.0, 0, 1]), np.array([1.0, 2, 3]), np.array([0, 0, 1])
    assert metrics.ndcg_at_k(labels, scores, groups) == 1
    assert math.isnan(metrics.ndcg_at_k(labels[:2], scores[:2], groups[:2]))


def test_calibration_of_a_calibrated_model():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=200_000)
    labels = (generator.random(200_000) < 1 / (1 + np.exp(-logits))).astype(float)
    assert metrics.calibration_ratio(labels, logits) == pytest.approx(1, abs=0.01)
    assert metrics.calibration_error(labels, logits) < 0.01
    assert metrics.calibration_error(labels, logits + 1) > 0.1


def test_bootstrap_covers_the_mean():
    values = np.random.default_rng(1).normal(3, 1, 400)
    drawn = metrics.bootstrap(lambda w: float(w @ values / w.sum()), np.arange(400), draws=500)
    low, high = metrics.interval(drawn)
    assert low < 3 < high
    assert high - low == pytest.approx(4 / 20, rel=0.2)


def test_bootstrap_by_cluster_is_wider_than_by_row():
    users = np.repeat(np.arange(50), 20)
    values = np.random.default_rng(2).normal(size=50)[users]

    def mean(weights):
        return float(weights @ values / weights.sum())

    by_row = metrics.interval(metrics.bootstrap(mean, np.arange(1000)))
    by_user = metrics.interval(metrics.bootstrap(mean, users))
    assert by_user.high - by_user.low > 3 * (by_row.high - by_row.low)


def test_poisson_deviance_is_zero_for_perfect_rates():
    counts = np.array([1.0, 2, 5])
    assert metrics.poisson_deviance(counts, np.log(counts)) == pytest.approx(0)
