"""Splits that do not divide a log as they should: refused, or said with what to set."""

import warnings
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig

ROWS = 1000
DAY = 86_400


def splits_of(folder: Path, split: str, *, times: list[int] | None = None, **more: Any) -> tuple[dict[str, int], str]:
    """The rows of each split of a log over ten days from 2024-01-01, and the notices."""
    times = times or [1_704_067_200 + n * 10 * DAY // ROWS for n in range(ROWS)]
    users, clicks = ([n % k for n in range(ROWS)] for k in (9, 2))
    frame = pl.DataFrame({"time": times, "user": users, "click": clicks})
    frame.with_columns(pl.from_epoch("time"), pl.lit("train").alias("fold")).write_parquet(folder / "log.parquet")
    data = {
        "log": str(folder / "log.parquet"),
        "time": "time",
        "user": "user",
        "split": yaml.safe_load(split),
        "tasks": {"click": {"column": "click"}},
        "features": {"user": {"kind": "id"}},
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = prepare(DataConfig.model_validate(data | more), folder / "dataset").splits
    return found, " ".join(str(one.message) for one in caught if issubclass(one.category, Notice))


def test_dates_need_no_quotes(tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load("2024-01-08"), date)
    assert isinstance(yaml.safe_load("2024-01-09 12:00:00"), datetime)
    found, said = splits_of(tmp_path, "{by: time, valid: 2024-01-08, test: 2024-01-09 12:00:00}")
    assert found == {"train": 700, "valid": 150, "test": 150}
    assert said == ""


@pytest.mark.parametrize(
    ("split", "empty", "remedy"),
    [
        ("{by: time, valid: 2024-01-08, test: 2025-01-09}", "test", "go from 2024-01-01 00:00:00 to 2024-01-10 23"),
        ("{by: time, valid: 2026-01-08, test: 2026-01-09}", "valid and test", "set data.split to dates between them"),
        ("{by: time, valid: 2024-01-08, test: 2024-01-08}", "valid", "set data.split to dates between them"),
        ("{by: time, valid: 0.0001, test: 0.1}", "valid", "set data.split to larger shares"),
        ("{by: random, valid: 0.1, test: 0.0001}", "test", "set data.split to larger shares"),
        ("{by: column, column: fold}", "test", "the column 'fold' names none"),
    ],
)
def test_an_empty_split_is_said_with_what_to_set(split: str, empty: str, remedy: str, tmp_path: Path) -> None:
    _, said = splits_of(tmp_path, split)
    assert f"no row is in {empty} (" in said
    assert remedy in said


@pytest.mark.parametrize("split", ["{by: time, valid: 0, test: 0.1}", "{by: leave_last, valid: 0, test: 1}"])
def test_an_empty_split_that_was_asked_for_is_not_said(split: str, tmp_path: Path) -> None:
    found, said = splits_of(tmp_path, split)
    assert found["valid"] == 0
    assert said == ""


def test_valid_after_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"valid begins at 2024-01-09, after test at 2024-01-08"):
        splits_of(tmp_path, "{by: time, valid: 2024-01-09, test: 2024-01-08}")


@pytest.mark.parametrize("backwards", [False, True])
def test_a_day_on_both_sides_of_a_split_is_said(backwards: bool, tmp_path: Path) -> None:
    days = [1_704_067_200 + n // 99 * DAY for n in range(ROWS)]
    found, said = splits_of(tmp_path, "{by: time}", times=days[::-1] if backwards else days)
    assert found == {"train": 800, "valid": 100, "test": 100}
    assert "valid begins among 99 rows of the time 2024-01-09 00:00:00 (time), of which 8 are in the split" in said
    assert "`test: 2024-01-10 00:00:00`" in said


def test_dates_keep_days_together(tmp_path: Path) -> None:
    days = [1_704_067_200 + n // 99 * DAY for n in range(ROWS)]
    _, said = splits_of(tmp_path, "{by: time, valid: 2024-01-09, test: 2024-01-10}", times=days)
    assert said.count("every time is in hour 0") == 1
    assert "amid" not in said


def test_one_time_for_all_rows_is_said(tmp_path: Path) -> None:
    found, said = splits_of(tmp_path, "{by: time}", times=[1_704_067_200] * ROWS)
    assert found == {"train": 800, "valid": 100, "test": 100}
    assert "every row has the time 2024-01-01 00:00:00 (time)" in said
    assert "{by: random}" in said


def test_a_few_rows_of_one_time_are_no_news(tmp_path: Path) -> None:
    pairs = [1_704_067_200 + n // 2 * DAY // 50 for n in range(ROWS)]
    assert splits_of(tmp_path, "{by: time, valid: 0.1005, test: 0.1005}", times=pairs)[1] == ""
