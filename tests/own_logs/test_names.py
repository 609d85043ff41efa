"""Logs whose columns are called like the product's own."""

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.names import OWN, key_name

ROWS = 200


def prepared(folder: Path, columns: dict[str, Any], **data: Any) -> Dataset:
    """A log with ``columns`` beside ``user``, ``item`` and ``click``, prepared."""
    log = pl.DataFrame(
        {
            "user": [f"u{row % 9}" for row in range(ROWS)],
            "item": [f"i{row % 7}" for row in range(ROWS)],
            "click": [row % 5 == 0 for row in range(ROWS)],
            **columns,
        }
    )
    log.write_parquet(folder / "log.parquet")
    config = {
        "log": str(folder / "log.parquet"),
        "user": "user",
        "tasks": {"click": {"column": "click"}},
        "features": {"user": {"kind": "id"}, "item": {"kind": "id"}},
        **data,
    }
    return prepare(DataConfig.model_validate(config), folder / "dataset")


def test_a_time_called_as_druid_calls_it(tmp_path: Path) -> None:
    start, end = datetime(2024, 1, 1), datetime(2024, 1, 9)
    times = pl.datetime_range(start, end, "30m", eager=True).head(ROWS)
    history = {"kind": "history", "of": ["item"], "entity": "user", "age": True}
    features = {"item": {"kind": "id"}, "__time": {"kind": "time"}, "past": history}
    dataset = prepared(tmp_path, {"__time": times}, time="__time", features=features)
    kept = pl.concat([dataset.keys(split)["__time"] for split in dataset.splits])
    assert kept.sort().to_list() == times.to_list()


@pytest.mark.parametrize("name", ["__row", "__split", "__reason", "__drawn", "positive"])
def test_a_number_called_like_a_column_of_the_product(tmp_path: Path, name: str) -> None:
    dataset = prepared(
        tmp_path,
        {name: [float(row % 4) for row in range(ROWS)]},
        features={"item": {"kind": "id"}, name: {"kind": "number"}},
        keys=[name],
    )
    assert sum(dataset.splits.values()) == ROWS
    kept = dataset.keys("train")[name]
    assert set(kept) == {0.0, 1.0, 2.0, 3.0}
    assert dataset.feature("train", name).n_unique() == 4


def test_an_unused_column_called_reason(tmp_path: Path) -> None:
    dataset = prepared(
        tmp_path,
        {"reason": ["promo"] * ROWS, "price": [1.0] * (ROWS - 1) + [-1.0]},
        features={"item": {"kind": "id"}},
    )
    assert sum(dataset.splits.values()) == ROWS
    assert pl.read_parquet(dataset.path / "quarantine.parquet").columns.count("reason") == 1


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"has a column '{name}', a name that recsys uses itself: rename it"):
        prepared(tmp_path, {name: [0] * ROWS})
    assert not (tmp_path / "dataset").exists()


def test_a_key_called_like_a_prediction() -> None:
    assert [key_name(key, ("click",)) for key in ("user", "click")] == ["user", "key:click"]
