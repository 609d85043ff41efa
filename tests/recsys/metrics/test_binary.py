"""Binary metrics beside slow references and scikit-learn, over rows with ties and single classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from metric_rows import ROWS, columns, slow_auc
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from recsys.metrics import binary as metrics


@given(ROWS)
def test_auc_counts_concordant_pairs(rows):
    labels, scores, _, weights = columns(rows)
    assert metrics.auc(labels, scores, weights) == pytest.approx(slow_auc(labels, scores, weights), nan_ok=True)


@settings(deadline=None)
@given(ROWS)
def test_auc_agrees_with_sklearn(rows):
    labels, scores, _, _ = columns(rows)
    if 0 < labels.mean() < 1:
        assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@given(ROWS)
def test_weights_count_rows(rows):
    labels, scores, _, weights = columns(rows)
    repeated = np.repeat(np.arange(len(labels)), weights.astype(int))
    for metric in (metrics.auc, metrics.log_loss, metrics.normalized_entropy, metrics.calibration_ratio):
        if len(repeated):
            assert metric(labels, scores, weights) == pytest.approx(
                metric(labels[repeated], scores[repeated]), nan_ok=True
            )


@settings(deadline=None)
@given(ROWS)
def test_log_loss_agrees_with_sklearn(rows):
    labels, logits, _, _ = columns(rows)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = sklearn_log_loss(labels, probabilities, labels=[0, 1])
    assert metrics.log_loss(labels, logits) == pytest.approx(expected)


def test_calibration_of_a_calibrated_model():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=200_000)
    labels = (generator.random(200_000) < 1 / (1 + np.exp(-logits))).astype(float)
    assert metrics.calibration_ratio(labels, logits) == pytest.approx(1, abs=0.01)
    assert metrics.calibration_error(labels, logits) < 0.01
    assert metrics.calibration_error(labels, logits + 1) > 0.1
