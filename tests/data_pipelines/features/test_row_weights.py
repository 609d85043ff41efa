"""Weights of rows: how they are read and stored, which are refused, and what thinning negatives leaves."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig

ROWS = 600


def make(folder: Path, columns: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"item": rng.integers(0, 9, ROWS), "click": (rng.random(ROWS) < 0.2).astype(int)})
    frame = frame.with_columns(pl.Series(name, values) for name, values in (columns or {}).items())
    frame.write_parquet(folder / "log.parquet")
    data = {
        "log": str(folder / "log.parquet"),
        "tasks": {"click": {"column": "click"}},
        "features": {"item": {"kind": "id"}},
        "keys": ["item"],
    }
    return prepare(DataConfig.model_validate(data | keys), folder / "dataset")


def test_weights_reach_batches_and_splits(tmp_path: Path) -> None:
    weights = np.arange(ROWS) / 7
    dataset = make(tmp_path, {"w": weights}, weight="w")
    for split in ("train", "test"):
        rows = dataset.feature(split, ":row").to_numpy()
        np.testing.assert_allclose(dataset.weights(split, "click"), weights[rows], rtol=1e-6)
    batch = next(iter(Loader(dataset, "train", batch_size=50, shuffle=True)))
    expected = dataset.weights("train", "click")[batch.rows.numpy()]
    np.testing.assert_allclose(batch.weights[:, 0].numpy(), expected, rtol=1e-6)


def test_a_task_may_have_weights_of_its_own(tmp_path: Path) -> None:
    tasks = {"click": {"column": "click"}, "other": {"column": "click", "row_weight": {"inverse": "p", "clip": 0.5}}}
    dataset = make(tmp_path, {"p": np.linspace(0.1, 1, ROWS)}, tasks=tasks)
    assert dataset.weights("train", "click") is None
    weights = dataset.weights("train", "other")
    rows = dataset.feature("train", ":row").to_numpy()
    np.testing.assert_allclose(weights, 1 / np.maximum(np.linspace(0.1, 1, ROWS)[rows], 0.5), rtol=1e-6)
    batch = next(iter(Loader(dataset, "train", batch_size=20)))
    np.testing.assert_allclose(batch.weights.numpy(), np.stack([np.ones(20), weights[:20]], 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "weight", "said"),
    [
        (-1.0, "w", "w: a weight below 0"),
        (None, "w", r"w: no weight \(missing, or not a finite number\)"),
        (float("nan"), "w", "w: no weight"),
        (0.0, {"inverse": "w"}, "w: a propensity that is not above 0 and at most 1"),
        (1.5, {"inverse": "w"}, "w: a propensity that is not above 0 and at most 1"),
        (None, {"inverse": "w"}, "w: no propensity"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, value: Any, weight: Any, said: str) -> None:
    values = pl.Series([1.0] * ROWS)
    values[7] = value
    with pytest.raises(UserError, match=f"1 of 600 rows are refused.*{said}.*first row 8"):
        make(tmp_path, {"w": values}, weight=weight, max_quarantined=0)


@pytest.mark.parametrize("weight", [{"column": "a", "inverse": "b"}, {"clip": 0.1}, {"column": "a", "clip": 0.1}])
def test_a_weight_has_one_source(weight: dict[str, Any]) -> None:
    data = {"log": "x.csv", "tasks": {"a": {"column": "a"}}, "features": {"b": {"kind": "id"}}}
    with pytest.raises(ValueError, match=r"either the name of a column|needs the key `inverse`"):
        DataConfig.model_validate(data | {"weight": weight})


def test_a_missing_column_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`weight` reads the column 'w', which is not there"):
        make(tmp_path, weight="w")


def test_thinned_negatives_stand_for_those_that_are_left_out(tmp_path: Path) -> None:
    whole = make(tmp_path)
    (tmp_path / "thin").mkdir()
    thin = make(tmp_path / "thin", sampling={"keep_negatives": 0.25})
    assert thin.splits["test"] == whole.splits["test"]
    assert thin.splits["valid"] == whole.splits["valid"]
    labels, weights = thin.labels("train")[:, 0], thin.weights("train", "click")
    everyone = whole.labels("train")[:, 0]
    assert labels.sum() == everyone.sum()
    assert 0.15 < (labels == 0).sum() / (everyone == 0).sum() < 0.35
    np.testing.assert_array_equal(weights, np.where(labels == 0, 4.0, 1.0))
    np.testing.assert_array_equal(thin.weights("test", "click"), 1.0)


def test_thinning_draws_nothing_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`keep_negatives` subsamples the negatives of the log and `item` draws"):
        make(tmp_path, sampling={"keep_negatives": 0.1, "item": "item"})


def test_weights_survive_extending(tmp_path: Path) -> None:
    dataset = make(tmp_path, {"w": np.arange(ROWS)}, weight="w")
    again = prepare(dataset.config, tmp_path / "more", extend=dataset.path)
    np.testing.assert_array_equal(again.weights("train", "click"), dataset.weights("train", "click"))
