"""Features that only histories read: of past events, never of the row itself."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from data_pipelines.dataset.dataset import prepare
from data_pipelines.features.config import DataConfig


def config(log: Path, **past: object) -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": str(log),
            "time": "when",
            "user": "user",
            "tasks": {"like": {"column": "stars", "at_least": 4}},
            "features": {"item": {"kind": "id"}, "stars": {"kind": "id", "input": False}, **past},
        }
    )


def test_the_rating_of_past_events_is_read_and_that_of_the_row_is_not(tmp_path: Path) -> None:
    rows = 40
    log = pl.DataFrame(
        {
            "user": [i % 2 for i in range(rows)],
            "item": [f"i{i % 7}" for i in range(rows)],
            "stars": [i % 5 + 1 for i in range(rows)],
            "when": [dt.datetime(2024, 1, 1) + dt.timedelta(hours=i) for i in range(rows)],
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    past = {"past": {"kind": "history", "of": ["item", "stars"], "last": 5}}
    data = prepare(config(tmp_path / "log.parquet", **past), tmp_path / "dataset")
    assert data.schema.feature_names == ("item", "past.item", "past.stars")
    raw = data.raw("test")
    last = raw["past.stars"].list.last().cast(pl.Int64)
    assert last.to_list() == [(row - 2) % 5 + 1 for row in range(rows - len(raw), rows)]


def test_a_feature_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no history's `of` names it"):
        config(tmp_path / "log.parquet")
