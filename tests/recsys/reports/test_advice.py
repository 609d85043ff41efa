"""One hint when a model loses, from what training and data show."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.standing import Difference, Standing
from recsys.reports.advice import why_it_loses
from recsys.training.results import Result

ROWS = 1000


def made(folder: Path, **columns: Any) -> tuple[Dataset, ExperimentConfig]:
    frame = pl.DataFrame({"time": np.arange(ROWS), "user": np.arange(ROWS) % 9, "click": np.arange(ROWS) % 2} | columns)
    frame.write_parquet(folder / "log.parquet")
    config = ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(folder / "log.parquet"),
                "time": "time",
                "tasks": {"click": {"column": "click"}},
                "split": {"by": "time", "valid": 0.1, "test": 0.1},
                "features": {"user": {"kind": "id"}},
            },
            "train": {"epochs": 3, "batch_size": 100},
        }
    )
    return prepare(config.data, folder / "dataset"), config


def hint(
    dataset: Dataset,
    config: ExperimentConfig,
    *,
    best: int = 16,
    steps: int = 24,
    stopped: str = "patience",
    low: float = -1,
) -> str:
    figure = Difference(baseline=0.8, difference=low, low=low, high=low, verdict="worse" if low < 0 else "better")
    standing = Standing(split="test", task="click", main="auc", against={"linear": {"auc": figure}})
    result = {"run": "run", "steps": steps, "best_step": best, "stopped": stopped, "valid": {}}
    return why_it_loses(
        standing,
        dataset,
        config,
        Result.model_validate(result | {"value": 0.5, "seconds": 1.0, "samples_per_s": 1.0}),
    )


def test_how_training_ended_is_looked_at_first(tmp_path: Path) -> None:
    dataset, config = made(tmp_path)
    assert hint(dataset, config, low=1) == ""
    assert "raise train.epochs" in hint(dataset, config, best=24, stopped="epochs")
    assert "overfits" in hint(dataset, config, best=8)
    assert "no histories and no statistics" in hint(dataset, config)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user": np.arange(ROWS)}, "100% of the ids of user in the test rows were not seen"),
        ({"click": (np.arange(ROWS) % np.where(np.arange(ROWS) < 800, 2, 5) == 0).astype(int)}, "the log drifts"),
    ],
)
def test_unseen_ids_and_drift_are_named(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    assert reason in hint(*made(tmp_path, **columns))
