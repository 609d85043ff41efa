"""Columns that hold another outcome of the row are told from honest ones."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice
from data_pipelines.features.config import DataConfig
from data_pipelines.logs.outcomes import outcome_reason

ROWS = 8000


def log() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    click = rng.random(ROWS) < 0.2
    return pl.DataFrame(
        {
            "time": 1_700_000_000 + np.arange(ROWS),
            "user": rng.integers(0, 100, ROWS),
            "country": rng.choice(["de", "fr", "ch"], ROWS, p=[0.9, 0.08, 0.02]),
            "is_bot": (rng.random(ROWS) < 0.02).astype(int),
            "price": np.where(rng.random(ROWS) < 0.9, 0.0, rng.random(ROWS)),
            "age_class": np.where(click, "adult", rng.choice(["adult", "child"], ROWS)),
            "is_like": (click & (rng.random(ROWS) < 0.2)).astype(int),
            "is_hate": (~click & (rng.random(ROWS) < 0.03)).astype(int),
            "seconds": pl.Series(rng.random(ROWS)).set(pl.Series(~click), None),
            "state": np.where(click & (rng.random(ROWS) < 0.5), "liked", rng.choice(["shown", "seen"], ROWS)),
            "is_open": (click | (rng.random(ROWS) < 0.1)).astype(int),
            "click": click.astype(int),
        }
    )


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("is_like", "is set only where 'click' is positive"),
        ("is_hate", "is set only where 'click' is not positive"),
        ("seconds", "is set only where 'click' is positive"),
        ("state", "has the value 'liked' only where 'click' is positive"),
        ("is_open", "is set wherever 'click' is positive"),
    ],
)
def test_an_outcome_is_found_by_implication(column: str, said: str) -> None:
    frame = log()
    labels = frame["click"].cast(pl.Float64).to_numpy()
    assert said in (outcome_reason(frame[column], labels, "click") or "")


@pytest.mark.parametrize("column", ["user", "country", "is_bot", "price", "age_class"])
def test_honest_columns_are_not_accused(column: str) -> None:
    frame = log()
    assert outcome_reason(frame[column], frame["click"].cast(pl.Float64).to_numpy(), "click") is None


def test_a_few_rows_prove_nothing() -> None:
    labels = np.zeros(1000)
    labels[:10] = 1
    assert outcome_reason(pl.Series([1] * 10 + [0] * 990), labels, "click") is None
    assert outcome_reason(pl.Series([1] * 10 + [0] * 990), np.full(1000, np.nan), "click") is None


def test_prepare_warns_of_the_label_and_of_outcomes(tmp_path: Path) -> None:
    log().write_parquet(tmp_path / "log.parquet")
    data: dict[str, Any] = {
        "log": str(tmp_path / "log.parquet"),
        "time": "time",
        "tasks": {"click": {"column": "click"}},
        "features": {name: {"kind": "id"} for name in ("user", "is_like", "click", "country")},
    }
    with pytest.warns(Notice) as caught:
        prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2
    assert "'click': the column 'click' is the label of the task 'click'" in said[0]
    assert "'is_like': the column 'is_like' is set only where 'click' is positive" in said[1]
    del data["features"]["is_like"], data["features"]["click"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        prepare(DataConfig.model_validate(data), tmp_path / "honest")
