"""Baselines on a log whose label follows one feature, with noise beside it."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from recsys.evaluation.baselines.measure import BASELINES, FITS, measure_baseline
from recsys.metrics.binary import auc


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """4,000 rows; ``kind`` decides the rate of the label, ``bias`` shifts it, ``noise`` says nothing."""
    folder, rng = tmp_path_factory.mktemp("baselines"), np.random.default_rng(0)
    kind, noise, bias = rng.integers(0, 5, 4000), rng.integers(0, 50, 4000), rng.normal(size=4000)
    label = rng.random(4000) < 1 / (1 + np.exp(-(kind - 2.0 + bias)))
    frame = pl.DataFrame({"kind": kind, "noise": noise, "bias": bias, "label": label.astype(int)})
    frame.write_parquet(folder / "log.parquet")
    config = DataConfig.model_validate(
        {
            "log": str(folder / "log.parquet"),
            "tasks": {"label": {"column": "label"}},
            "split": {"by": "random", "valid": 0.2, "test": 0.2},
            "features": {"kind": {"kind": "id"}, "noise": {"kind": "id"}, "bias": {"kind": "number"}},
        }
    )
    return prepare(config, folder / "dataset")


def test_popularity_takes_the_feature_that_orders_rows(dataset: Dataset) -> None:
    assert 0.68 < measure_baseline("popularity", dataset)["auc"] < 0.8


def test_the_linear_model_adds_what_popularity_cannot_and_drops_noise(dataset: Dataset) -> None:
    measured = measure_baseline("linear", dataset)
    assert measured["auc"] > measure_baseline("popularity", dataset)["auc"] + 0.05
    assert measured["density"] < 0.7
    assert measured["logloss"] < math.log(2)


@pytest.mark.parametrize("baseline", ["fm", "lightgbm"])
def test_others_come_near_the_linear_model_where_truth_is_linear(dataset: Dataset, baseline) -> None:
    pytest.importorskip("lightgbm")
    assert measure_baseline(baseline, dataset)["auc"] > measure_baseline("popularity", dataset)["auc"] + 0.02


def test_baselines_are_the_same_each_time(dataset: Dataset) -> None:
    for baseline in BASELINES.values():
        assert baseline(dataset, "valid") == baseline(dataset, "valid")


def test_a_baseline_of_some_features_sees_no_others(dataset: Dataset) -> None:
    for name in ("popularity", "linear", "lightgbm"):
        noise = FITS[name](dataset, ["noise"]).logits("test")
        assert abs(auc(dataset.labels("test")[:, 0], noise) - 0.5) < 0.1


def test_trees_read_a_number_in_pieces_as_the_number(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    amounts = rng.integers(0, 20, 800)
    labels = rng.random(800) < np.where(amounts % 7 < 3, 0.8, 0.2)
    pl.DataFrame({"amount": amounts, "y": labels.astype(int)}).write_parquet(tmp_path / "log.parquet")
    pieces = {"kind": "number", "column": "amount", "transform": "piecewise", "buckets": 4, "indicator": True}
    config = DataConfig.model_validate(
        {
            "log": str(tmp_path / "log.parquet"),
            "tasks": {"y": {"column": "y"}},
            "split": {"by": "random", "valid": 0.2, "test": 0.2},
            "features": {"amount": {"kind": "number"}, "pieces": pieces},
        }
    )
    made = prepare(config, tmp_path / "dataset")
    whole, cut = (FITS["lightgbm"](made, [name]).logits("test") for name in ("amount", "pieces"))
    np.testing.assert_allclose(cut, whole)


def test_a_task_without_labels_everywhere_is_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3, 4] * 5, "y": [0.5, 1.5, 2.0, 1.0] * 5})
    frame.write_parquet(tmp_path / "log.parquet")
    config = DataConfig.model_validate(
        {
            "log": str(tmp_path / "log.parquet"),
            "tasks": {"y": {"column": "y", "kind": "regression"}},
            "split": {"by": "random", "valid": 0.2, "test": 0.2},
            "features": {"a": {"kind": "id"}},
        }
    )
    with pytest.raises(UserError, match="baselines need a binary task"):
        measure_baseline("popularity", prepare(config, tmp_path / "dataset"))
