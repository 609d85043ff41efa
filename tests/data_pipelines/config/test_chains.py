"""Tasks that happen only after another one: what the config refuses, and the labels that a data set holds."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig

CHAIN = {
    "buy": {"column": "buy", "after": "cart"},
    "click": {"column": "click"},
    "cart": {"column": "cart", "after": "click"},
}


def config(tasks: dict[str, Any], log: Path | str = "log.parquet", **more: Any) -> DataConfig:
    return DataConfig.model_validate(
        {"log": str(log), "tasks": tasks, "features": {"item": {"kind": "id"}}, "split": {"by": "random"}} | more
    )


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ({"buy": {"column": "buy", "after": "klick"}, "click": {"column": "click"}}, "did you mean `click`"),
        ({"a": {"column": "a", "after": "b"}, "b": {"column": "b", "after": "a"}}, "circle \\(a after b after a\\)"),
        ({"a": {"column": "a", "after": "a"}}, "circle \\(a after a\\)"),
        (
            {"pay": {"column": "pay", "after": "buy", "kind": "regression"}, "buy": {"column": "buy"}},
            "task `pay` is of kind regression",
        ),
        (
            {"buy": {"column": "buy", "after": "seen"}, "seen": {"column": "seen", "kind": "count"}},
            "task `seen` is of kind count",
        ),
    ],
)
def test_chains_that_make_no_sense_are_refused(tasks: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(tasks)


def test_drawn_negatives_are_refused() -> None:
    tasks = {"taken": {"column": "positive"}, "kept": {"column": "kept", "after": "taken"}}
    with pytest.raises(ValueError, match="rows that never were"):
        config(tasks, user="user", sampling={"item": "item"})


def test_a_row_without_the_first_task_has_the_label_0_for_all_later_ones(tmp_path: Path) -> None:
    rows = pl.DataFrame(
        {
            "item": ["a", "b", "c", "d", "e"] * 20,
            "click": [0, 1, 1, 1, None] * 20,
            "cart": [None, None, 0, 1, 1] * 20,
            "buy": [None, None, None, 1, None] * 20,
        }
    )
    rows.write_parquet(tmp_path / "log.parquet")
    dataset = prepare(config(CHAIN, tmp_path / "log.parquet", keys=["item"]), tmp_path / "dataset")
    labels = np.concatenate([dataset.labels(split) for split in ("train", "valid", "test")])
    items = pl.concat(dataset.keys(split) for split in ("train", "valid", "test"))["item"]
    found = dict(zip(items, labels.tolist(), strict=True))
    nan = float("nan")
    expected = {"a": [0, 0, 0], "b": [nan, 1, nan], "c": [0, 1, 0], "d": [1, 1, 1], "e": [nan, nan, 1]}
    for item, row in expected.items():
        np.testing.assert_array_equal(found[item], row, err_msg=item)
    assert dataset.schema.after == {"buy": "cart", "cart": "click"}


def test_a_conversion_without_a_click_is_refused_and_said(tmp_path: Path) -> None:
    clicks = np.array([0, 1, 1, 0] * 250)
    bought = np.array([0, 1, 0, 0] * 250)
    bought[[0, 40]] = 1
    rows = pl.DataFrame({"item": np.arange(1000) % 7, "click": clicks, "buy": bought})
    rows.write_parquet(tmp_path / "log.parquet")
    tasks = {"click": {"column": "click"}, "buy": {"column": "buy", "after": "click"}}
    dataset = prepare(config(tasks, tmp_path / "log.parquet"), tmp_path / "dataset")
    reason = "buy: task 'buy' happened without 'click', which it comes after"
    assert dataset.profile["refused"] == {reason: 2}
    strict = config(tasks, tmp_path / "log.parquet", max_quarantined=0.001)
    with pytest.raises(UserError, match=f"{reason} \\(2 rows, first row 1\\)"):
        prepare(strict, tmp_path / "refused")
