"""Rows without a label for a task: a condition, or a null in the log."""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.dataset.dataset import prepare
from recsys.config.experiment import ExperimentConfig
from recsys.training.train import train


def test_a_task_with_a_condition_is_trained_on_the_rows_where_it_holds(
    tiny_data: dict[str, Any], tmp_path: Path
) -> None:
    tasks = {"click": {"column": "click"}, "cheap": {"column": "click", "where": "price < 5"}}
    config = ExperimentConfig.model_validate(
        {
            "data": tiny_data | {"tasks": tasks},
            "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [8]}},
            "train": {"epochs": 1, "batch_size": 256},
        }
    )
    dataset = prepare(config.data, tmp_path / "dataset")
    missing = np.isnan(dataset.labels("train")).mean(axis=0)
    assert missing[0] == 0
    assert 0 < missing[1] < 1
    result = train(config, dataset, tmp_path / "run")
    assert result.value is not None
    assert np.isfinite(result.value)
