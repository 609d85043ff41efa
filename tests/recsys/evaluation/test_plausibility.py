"""An AUC that is too good names the feature behind it, and an honest one is not accused."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.unseen import unseen_shares
from data_pipelines.errors import Notice
from data_pipelines.features.config import DataConfig
from recsys.evaluation.plausibility import warn_of_implausible

ROWS = 4000


def prepared(folder: Path, **columns: Any) -> Dataset:
    rng = np.random.default_rng(0)
    click = (rng.random(ROWS) < 0.3).astype(int)
    own = {
        "time": 1_700_000_000 + np.arange(ROWS),
        "user": [f"u{n}" for n in np.arange(ROWS) // 40],
        "hint": np.where(rng.random(ROWS) < 0.9, click, 1 - click),
        "paid": click + rng.normal(size=ROWS) * 0.05,
        "liked": click * (rng.random(ROWS) < 0.3),
        "click": click,
    }
    pl.DataFrame(own).write_parquet(folder / "log.parquet")
    config = {
        "log": str(folder / "log.parquet"),
        "time": "time",
        "tasks": {"click": {"column": "click"}},
        "features": {"user": {"kind": "id"}, **columns},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return prepare(DataConfig.model_validate(config), folder / "dataset")


@pytest.mark.parametrize(
    ("feature", "auc", "said"),
    [
        ({"paid": {"kind": "number"}}, 0.99, "look at 'paid'"),
        ({"paid": {"kind": "number", "transform": "piecewise", "indicator": True}}, 0.99, "look at 'paid'"),
        ({"liked": {"kind": "id"}}, 0.7, "look at 'liked', whose column is set only where 'click' is positive"),
        ({"hint": {"kind": "id"}}, 0.995, "a few features together"),
    ],
)
def test_the_feature_to_look_at_is_named(tmp_path: Path, feature: dict[str, Any], auc: float, said: str) -> None:
    dataset = prepared(tmp_path, **feature)
    with pytest.warns(Notice, match=said):
        warn_of_implausible(dataset, "test", "click", auc, dataset.schema.feature_names)


@pytest.mark.parametrize("auc", [0.55, 0.85, 0.96])
def test_a_plausible_result_is_not_accused(tmp_path: Path, auc: float) -> None:
    dataset = prepared(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        warn_of_implausible(dataset, "test", "click", auc, dataset.schema.feature_names)


def test_shares_of_values_that_training_did_not_see(tmp_path: Path) -> None:
    dataset = prepared(tmp_path)
    assert unseen_shares(dataset.schema, dataset.frame("test")) == {"user": (0.0, 1.0)}
    assert unseen_shares(dataset.schema, dataset.frame("train")) == {"user": (0.0, 0.0)}
