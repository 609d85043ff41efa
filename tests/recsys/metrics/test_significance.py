"""Statistics of comparisons: against slow references, scikit-learn, and simulations with a known truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recsys.evaluation.comparison import TestRows
from recsys.metrics import significance
from recsys.metrics.binary import AUC, auc
from recsys.metrics.bootstrap import bootstrap_weights
from recsys.metrics.registry import headline_metrics
from recsys.metrics.significance import auc_influence
from tests.metric_rows import ROWS, columns


def _rows(seed: int, rows: int = 300, users: int = 40):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, rows)
    logits = np.round(rng.normal(size=rows) + rng.normal(size=users)[user], 1)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(float)
    return labels, logits, user, rng


def _slow_delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong et al. 1988 by comparing every positive with every negative."""
    wins = [
        (row[labels > 0][:, None] > row[labels < 1]) + 0.5 * (row[labels > 0][:, None] == row[labels < 1])
        for row in scores
    ]
    of_positive = np.cov([w.mean(axis=1) for w in wins])
    of_negative = np.cov([w.mean(axis=0) for w in wins])
    covariance = of_positive / wins[0].shape[0] + of_negative / wins[0].shape[1]
    return np.array([w.mean() for w in wins]), covariance


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_fast_delong_is_the_slow_one(seed: int) -> None:
    labels, logits, _, rng = _rows(seed, rows=80)
    scores = np.stack([logits, np.round(logits + rng.normal(size=80), 1)])
    fast, slow = significance.delong(labels, scores), _slow_delong(labels, scores)
    np.testing.assert_allclose(fast[0], slow[0], atol=1e-12)
    np.testing.assert_allclose(fast[1], slow[1], atol=1e-12)


def test_delong_over_single_row_clusters_is_nearly_delong() -> None:
    labels, logits, _, rng = _rows(0, rows=2000)
    scores = np.stack([logits, logits + rng.normal(size=2000)])
    _, plain = significance.delong(labels, scores)
    _, clustered = significance.delong(labels, scores, np.arange(2000))
    np.testing.assert_allclose(clustered, plain, rtol=2e-3)


def test_delong_needs_both_labels() -> None:
    with pytest.raises(ValueError, match="both labels"):
        significance.delong(np.ones(3), np.arange(3.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_every_bootstrap_draw_is_the_metric_of_the_drawn_rows(seed: int) -> None:
    labels, logits, user, _ = _rows(seed)
    rows = TestRows(labels, user, draws=5, seed=seed)
    draws = bootstrap_weights(rows.users, 5, seed)
    cluster_N = rows.resampling.cluster_N
    for metric in headline_metrics("binary", groups={"users"}):
        measured = rows.measure(metric, logits)
        for counts, drawn in zip(draws.astype(int), measured.draws_R, strict=True):
            # a user drawn twice is two users: GAUC and NDCG rank within each
            drawn_users = np.repeat(np.arange(len(counts)), counts)
            taken = np.concatenate([np.flatnonzero(cluster_N == u) for u in drawn_users])
            copies = np.concatenate([np.full((cluster_N == u).sum(), i) for i, u in enumerate(drawn_users)])
            alone = TestRows(labels[taken], copies, draws=1).measure(metric, logits[taken])
            assert drawn == pytest.approx(alone.value, rel=1e-5, nan_ok=True)


def test_auc_of_comparison_is_that_of_scikit_learn() -> None:
    labels, logits, user, _ = _rows(1)
    assert TestRows(labels, user).measure(AUC, logits).value == pytest.approx(roc_auc_score(labels, logits))


def test_rows_without_label_and_outside_a_slice_are_left_out() -> None:
    labels, logits, user, _ = _rows(2)
    labels[:50] = np.nan
    within = np.arange(300) < 200
    rows = TestRows(labels, user, rows_N=within)
    assert len(rows) == 150
    assert rows.measure(AUC, logits).value == pytest.approx(auc(labels[50:200], logits[50:200]))


def test_bootstrap_over_users_and_clustered_delong_agree() -> None:
    labels, logits, user, rng = _rows(3, rows=4000, users=400)
    other = logits + 0.7 * rng.normal(size=4000)
    rows = TestRows(labels, user, draws=2000)
    drawn = (rows.measure(AUC, other).draws_R - rows.measure(AUC, logits).draws_R).std()
    _, covariance = significance.delong(labels, np.stack([logits, other]), user)
    exact = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert drawn == pytest.approx(exact, rel=0.1)


def test_intervals_cover_the_truth_at_their_level() -> None:
    """Simulated studies of 12 arms and 3 seeds: the 95% interval misses the true effect in about 5%."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(150):
        seeds = rng.normal(0.3, 0.02, (12, 3))
        measured = seeds + rng.normal(0, 0.01, (12, 1))
        prior = significance.pooled_seed_variance(measured)
        effects = [significance.combine(row, 0.01**2, prior=prior) for row in measured]
        missed += sum(not effect.low <= 0.3 <= effect.high for effect in effects)
    assert 0.03 <= missed / (150 * 12) <= 0.06


def test_pooling_narrows_intervals_of_three_seeds() -> None:
    rng = np.random.default_rng(1)
    measured = rng.normal(0, 0.02, (12, 3))
    prior = significance.pooled_seed_variance(measured)
    alone = np.mean([(e := significance.combine(row, 0.0)).high - e.low for row in measured])
    together = np.mean([(e := significance.combine(row, 0.0, prior=prior)).high - e.low for row in measured])
    assert together < 0.7 * alone


def test_an_effect_of_no_uncertainty_is_certain() -> None:
    assert significance.combine([0.0, 0.0], 0.0).p_value == 1.0
    assert significance.combine([0.1, 0.1], 0.0).p_value == 0.0


def test_the_number_of_seeds_that_tell_tells() -> None:
    rng = np.random.default_rng(2)
    guess = significance.combine(rng.normal(0.01, 0.01, 3), 1e-6, prior=(0.01**2, 50.0))
    truth = significance.Effect(0.01, 0, 0, 1, 0, 50, guess.rows_variance, 0.01**2)
    seeds = significance.seeds_that_tell(truth)
    assert seeds is not None
    found = sum(
        significance.combine(rng.normal(0.01, 0.01, seeds), 1e-6, prior=(0.01**2, 50.0)).p_value < 0.05
        for _ in range(300)
    )
    assert 0.7 <= found / 300 <= 0.92


def test_no_number_of_seeds_tells_what_the_test_rows_cannot() -> None:
    assert significance.seeds_that_tell(significance.combine([0.001, 0.0011], 0.01**2)) is None


def test_corrections_are_the_textbook_ones() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(significance.holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(significance.benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections_keep_order_and_never_lower_a_p_value(p: list[float]) -> None:
    for corrected in (significance.holm(p), significance.benjamini_hochberg(p)):
        assert (corrected >= np.array(p) - 1e-12).all()
        assert (corrected <= 1).all()
        assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= -1e-12).all()


@given(rows=ROWS)
def test_weighted_influence_is_that_of_repeated_rows(rows) -> None:
    labels, scores, _, weights = columns(rows)
    repeats = weights.astype(int)
    if len(np.unique(labels[repeats > 0])) < 2:
        with pytest.raises(ValueError, match="AUC needs rows of both labels"):
            auc_influence(labels, scores, weights)
        return
    value, influence = auc_influence(labels, scores, weights)
    copies = np.repeat(np.arange(len(labels)), repeats)
    expected, each = auc_influence(labels[copies], scores[copies])
    assert value == pytest.approx(expected)
    np.testing.assert_allclose(influence, np.bincount(copies, each, len(labels)), atol=1e-12)
