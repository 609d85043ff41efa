"""What is monitored, and what is left out of it because the rows do not define it."""

import math

import numpy as np
import pytest

from data_pipelines.errors import UserError
from recsys.evaluation.monitor import Monitor
from recsys.metrics.rows import RowFacts

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
