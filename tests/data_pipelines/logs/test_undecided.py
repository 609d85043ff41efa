"""Rows whose label may still change teach nothing, and still count as events."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import Notice
from data_pipelines.features.config import DataConfig

ROWS = 1000
LOG = pl.DataFrame(
    {
        "time": 1_700_000_000 + 10 * np.arange(ROWS),
        "item": np.arange(ROWS) % 7,
        "click": np.arange(ROWS) % 2,
        "buy": (np.arange(ROWS) % 4 == 1).astype(int),
    }
)


def prepared(folder: Path, tasks: dict[str, Any], **more: Any) -> Dataset:
    LOG.write_parquet(folder / "log.parquet")
    features = {"item": {"kind": "id"}, "seen": {"kind": "statistic", "measure": "count", "by": ["item"]}}
    config = {"log": str(folder / "log.parquet"), "time": "time", "tasks": tasks, "features": features} | more
    return prepare(DataConfig.model_validate(config), folder / "dataset")


def test_young_rows_have_no_label_whether_0_or_1(tmp_path: Path) -> None:
    tasks = {"click": {"column": "click"}, "buy": {"column": "buy", "after": "click", "label_window": 2500}}
    with pytest.warns(Notice, match="task 'buy': 250 rows are younger .* No row of valid and test has a label left"):
        dataset = prepared(tmp_path, tasks)
    labels_NT = np.concatenate([dataset.labels(split) for split in ("train", "valid", "test")])
    np.testing.assert_array_equal(labels_NT[:, 0], LOG["click"])
    np.testing.assert_array_equal(labels_NT[:750, 1], LOG["buy"][:750])
    assert np.isnan(labels_NT[750:, 1]).all()
    assert dataset.profile["undecided"] == {"buy": 250}


def test_rows_without_any_label_are_left_out_but_are_events(tmp_path: Path) -> None:
    split = {"by": "random", "valid": 0.1, "test": 0.1}
    with pytest.warns(Notice, match="300 rows"):
        dataset = prepared(tmp_path, {"buy": {"column": "buy", "label_window": 3000}}, split=split)
    assert sum(dataset.splits.values()) == 700
    assert dataset.state is not None
    assert dataset.state.latest == (1_700_000_000 + 10 * (ROWS - 1)) * 1_000_000


def test_a_window_needs_a_time() -> None:
    tasks = {"buy": {"column": "buy", "label_window": 60}}
    with pytest.raises(ValueError, match=r"`tasks\.buy\.label_window` needs the key `time`"):
        DataConfig.model_validate({"log": "x", "tasks": tasks, "features": {"item": {"kind": "id"}}})
