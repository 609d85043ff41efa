"""Metrics of regressions and counts."""

import numpy as np
import pytest
from sklearn.metrics import mean_poisson_deviance, root_mean_squared_error

from recsys.metrics import regression as metrics


def test_poisson_deviance_is_zero_for_perfect_rates():
    counts = np.array([1.0, 2, 5])
    assert metrics.poisson_deviance(counts, np.log(counts)) == pytest.approx(0)


def test_metrics_agree_with_sklearn():
    rng = np.random.default_rng(0)
    counts, log_rates, weights = rng.poisson(2.0, 50).astype(float), rng.normal(size=50), rng.integers(1, 4, 50)
    rates = np.exp(log_rates)
    expected = mean_poisson_deviance(counts, rates, sample_weight=weights)
    assert metrics.poisson_deviance(counts, log_rates, weights) == pytest.approx(expected)
    expected = root_mean_squared_error(counts, rates, sample_weight=weights)
    assert metrics.root_mean_squared_error(counts, rates, weights) == pytest.approx(expected)
