"""The bootstrap covers what it should, and clusters widen it."""

import numpy as np
import pytest

from recsys.metrics import bootstrap as metrics


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


def test_a_row_of_no_user_is_a_cluster_of_its_own_and_in_no_group():
    resampling = metrics.Resampling(np.array([4, -1, 4, 2, -1]), 5, draws=3)
    assert resampling.group_N.tolist() == [1, -1, 1, 0, -1]
    assert resampling.cluster_N.tolist() == [1, 2, 1, 0, 3]
    assert (resampling.users, resampling.clusters) == (2, 4)


def test_draws_that_are_not_kept_are_the_same_draws(monkeypatch):
    labels, scores = np.array([0.0, 1, 1, 0, 1]), np.array([0.1, 0.4, 0.2, 0.3, 0.9])
    kept = metrics.Resampling(None, 5, draws=9)
    expected = kept.auc(labels, scores), kept.ratio(scores, labels), kept.apply(lambda w: float(w @ scores))
    monkeypatch.setattr(metrics, "_KEPT_CELLS", 10)
    drawn = metrics.Resampling(None, 5, draws=9)
    found = drawn.auc(labels, scores), drawn.ratio(scores, labels), drawn.apply(lambda w: float(w @ scores))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
