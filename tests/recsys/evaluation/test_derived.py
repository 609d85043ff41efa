"""What is measured besides the tasks: conditional probabilities, and the order of a score."""

import numpy as np
import pytest
import torch

from data_pipelines.config.learning import Task
from models.layers.outcomes.chains import logit_of_product
from recsys.evaluation.derived import conditional_logits, derived, derived_metrics
from recsys.metrics.grouped import ndcg_at_k
from recsys.metrics.rows import RowFacts
from serving.formula import Formula

TASKS = {
    "click": Task(column="click"),
    "buy": Task(column="buy", after="click"),
    "price": Task(column="price", kind="regression"),
}
LABELS_NT = np.array([[1, 1, 9.0], [1, 0, 2], [0, 0, 5], [0, 0, 1], [1, 1, 1], [0, 0, 8], [np.nan, np.nan, 3]])
LOGITS_NT = np.random.default_rng(0).normal(size=LABELS_NT.shape)
LISTS_N = np.array([0, 0, 0, 0, 1, 1, 1])
FACTS = dict.fromkeys(TASKS, RowFacts(lists_N=LISTS_N))


def measured(score: str | None) -> dict[str, dict[str, float]]:
    formula = None if score is None else Formula.parse(score, TASKS)
    parts = list(derived(TASKS, LABELS_NT, FACTS, formula))
    known = derived_metrics(TASKS, formula, groups={"lists"})
    assert all([m.name for m in part.metrics] == [m.name for m in known[part.name]] for part in parts)
    return {part.name: part.measure(LOGITS_NT) for part in parts}


def test_conditional_logits_are_the_inverse_of_the_product() -> None:
    conditional_N, first_N = torch.randn(100, dtype=torch.float64) * 4, torch.randn(100, dtype=torch.float64) * 4
    whole_N = logit_of_product(conditional_N, first_N).numpy()
    np.testing.assert_allclose(conditional_logits(whole_N, first_N.numpy()), conditional_N.numpy(), rtol=1e-4)


def test_a_task_is_measured_where_the_one_it_comes_after_happened() -> None:
    found = measured(None)
    assert list(found) == ["buy:conditional"]
    logits_N = conditional_logits(LOGITS_NT[:, 1], LOGITS_NT[:, 0])[[0, 1, 4]]
    labels_N = np.array([1.0, 0.0, 1.0])
    expected = np.mean(np.logaddexp(0, logits_N) - labels_N * logits_N)
    assert found["buy:conditional"]["logloss"] == pytest.approx(expected)


def test_the_order_of_a_score_is_measured_against_labels_and_gains() -> None:
    found = measured("click * max(price, 0)")
    assert list(found) == ["buy:conditional", "score/click", "score/buy", "score"]
    scores_N = 1 / (1 + np.exp(-LOGITS_NT[:, 0])) * np.maximum(LOGITS_NT[:, 2], 0)
    gains_N = LABELS_NT[:6, 0] * LABELS_NT[:6, 2]
    expected = ndcg_at_k(gains_N, scores_N[:6], LISTS_N[:6])
    assert found["score"]["list_ndcg@10"] == pytest.approx(expected)
    assert found["score/click"]["auc"] == pytest.approx(
        np.mean([(scores_N[a] > scores_N[b]) + (scores_N[a] == scores_N[b]) / 2 for a in (0, 1, 4) for b in (2, 3, 5)])
    )


def test_a_score_that_is_undefined_for_a_row_measures_nothing() -> None:
    found = measured("log(price) * click")
    assert np.isnan(list(found["score/click"].values())).all()
    assert np.isfinite(found["buy:conditional"]["auc"])


def test_a_formula_whose_labels_give_no_gains_is_measured_against_the_tasks_only() -> None:
    assert "score" not in measured("log(click) * price")
    assert "score" not in measured("click - price")
