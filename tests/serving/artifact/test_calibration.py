"""Calibrations of weighted rows are those of rows that come as often as they count."""

import numpy as np
import pytest

from serving.artifact.calibration import Isotonic, Platt, fit_isotonic, fit_platt


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_a_weight_counts_a_row_that_many_times(fit) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000).astype(np.float32)
    labels = (rng.random(4000) < 1 / (1 + np.exp(1 - 2 * logits))).astype(np.float32)
    weights = np.where(labels > 0, 1, 4)
    copies = np.repeat(np.arange(4000), weights)
    weighted: Platt | Isotonic = fit(logits, labels, weights.astype(np.float64))
    repeated = fit(logits[copies], labels[copies])
    grid = np.linspace(-2, 2, 50).astype(np.float32)
    np.testing.assert_allclose(weighted(grid), repeated(grid), atol=2e-3)
    assert np.abs(weighted(grid) - fit(logits, labels)(grid)).max() > 0.1
