"""What is monitored, and what is left out of it because the rows do not define it."""

import math

import numpy as np
import pytest

from data_pipelines.config.learning import Task
from data_pipelines.errors import UserError
from models.layers.heads import TaskKind
from recsys.evaluation.derived import derived, derived_metrics
from recsys.evaluation.monitor import Monitor
from recsys.metrics.registry import EVERY
from recsys.metrics.rows import RowFacts
from serving.formula import Formula

KINDS = {"click": "binary", "buy": "binary"}
LABELS = np.array([[0.0, 0], [1, 0], [1, 0], [0, 0]])


def test_a_key_is_the_mean_over_the_tasks_that_have_the_metric() -> None:
    monitor = Monitor.of({"auc": 1, "click/logloss": -0.5}, KINDS, groups=())
    tasks = {"click": {"auc": 0.8, "logloss": 0.4}, "buy": {"auc": 0.6, "logloss": 9.0}}
    assert monitor.value(tasks) == pytest.approx(0.7 - 0.2)
    assert monitor.names == {"auc", "logloss"}


def test_an_undefined_metric_is_left_out_with_a_sentence() -> None:
    monitor = Monitor.of({"auc": 1, "ne": -1}, KINDS, groups=())
    left, notes = monitor.defined_on("valid", KINDS, LABELS, {})
    tasks = {"click": {"auc": 0.8, "ne": 0.9}, "buy": {"auc": math.nan, "ne": math.nan}}
    assert left.value(tasks) == pytest.approx(-0.1)
    assert notes[0] == (
        "train.monitor.auc leaves out AUC of task buy, which is undefined on the valid split: all 4 labels are 0."
    )
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("labels", "users", "monitor", "said"),
    [
        (LABELS[:, 1:], None, {"auc": 1}, "all 4 labels are 0"),
        (LABELS[:, :1], np.array([1, 2, 3, -1]), {"gauc": 1}, "no user has rows of both classes"),
        (np.full((4, 1), np.nan), None, {"auc": 1}, "no row has a label"),
    ],
)
def test_a_monitor_with_nothing_left_is_refused(labels, users, monitor, said) -> None:
    kinds = {"task": "binary"}
    with pytest.raises(UserError, match=f"{said}.*Nothing is left to monitor"):
        Monitor.of(monitor, kinds, groups={"users"}).defined_on("valid", kinds, labels, {"task": RowFacts(users)})


@pytest.mark.parametrize(
    ("weights", "kind", "users", "said"),
    [
        ({"auc": 1}, "regression", False, "train.monitor.auc: there is no such metric; there are task/rmse"),
        ({"other/auc": 1}, "binary", False, "train.monitor.other/auc: there is no such metric; there are task/auc"),
        ({"gauc": 1}, "binary", False, "GAUC needs data.user"),
        ({"logloss": 1}, "binary", False, "lower values of log loss are better.*negative weight"),
        ({"auc": -1}, "binary", False, "higher values of AUC are better.*positive weight"),
    ],
)
def test_a_monitor_that_cannot_be_meant_is_refused(weights, kind, users, said) -> None:
    with pytest.raises(UserError, match=said):
        Monitor.of(weights, {"task": kind}, groups={"users"} if users else ())


def test_calibration_counts_by_its_distance_from_one() -> None:
    monitor = Monitor.of({"calibration": 1}, {"click": "binary"}, groups=())
    assert monitor.value({"click": {"calibration": 1.1}}) == pytest.approx(-0.1)
    assert monitor.value({"click": {"calibration": 0.7}}) == pytest.approx(-0.3)


TASKS = {"click": Task(column="click"), "price": Task(column="price", kind="regression")}
OF_TASKS: dict[str, TaskKind] = {"click": "binary", "price": "regression"}
ROWS = np.array([[1.0, 9], [0, 2], [0, 5], [1, 1]])
LISTS = dict.fromkeys(TASKS, RowFacts(lists_N=np.array([0, 0, 1, 1])))


def monitor_of(weights: dict[str, float], formula: str, *, lists: bool = True) -> Monitor:
    besides = derived_metrics(TASKS, Formula.parse(formula, TASKS), groups=EVERY)
    return Monitor.of(weights, OF_TASKS, groups={"lists"} if lists else set(), besides=besides)


def test_the_order_of_the_score_is_monitored_as_evaluate_measures_it() -> None:
    monitor = monitor_of({"score/list_ndcg@10": 1, "score/click/auc": 0.5, "rmse": -1}, "click * price")
    entries = list(derived(TASKS, ROWS, LISTS, Formula.parse("click * price", TASKS)))
    monitor, notes = monitor.defined_on("valid", OF_TASKS, ROWS, LISTS, entries)
    assert not notes
    assert monitor.entries == {"score", "score/click", "price"}
    measured = {entry.name: entry.measure(np.array([[2.0, 1], [1, 3], [0, 2], [-1, 4]])) for entry in entries}
    expected = measured["score"]["list_ndcg@10"] + 0.5 * measured["score/click"]["auc"] - 2
    assert monitor.value(measured | {"price": {"rmse": 2.0}}) == pytest.approx(expected)


def test_a_metric_of_tasks_alone_is_no_metric_of_the_score() -> None:
    with pytest.raises(UserError, match=r"score/logloss: there is no such metric; .*score/list_ndcg@10"):
        monitor_of({"score/logloss": -1}, "click * price")
    with pytest.raises(UserError, match=r"score/list_ndcg@10: .* needs data.group, the columns of a list"):
        monitor_of({"score/list_ndcg@10": 1}, "click * price", lists=False)


def test_a_formula_whose_labels_give_no_gains_cannot_be_monitored() -> None:
    monitor = monitor_of({"score/list_ndcg@10": 1}, "click - price")
    entries = list(derived(TASKS, ROWS, LISTS, Formula.parse("click - price", TASKS)))
    with pytest.raises(UserError, match=r"entry score, which is undefined .* the formula of the labels is negative"):
        monitor.defined_on("valid", OF_TASKS, ROWS, LISTS, entries)
