"""A run-sized experiment and its data set, shared by the tests of all levers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig

Configure = Callable[..., ExperimentConfig]


@pytest.fixture(scope="session")
def weighted_data(
    tiny_log: Path, tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The ``data`` block of the tiny log with weights for its tags, and tags once more without."""
    rng = np.random.default_rng(5)
    frame = pl.read_parquet(tiny_log)
    weights = [rng.uniform(0.2, 2, len(tags)).round(3).tolist() for tags in frame["tags"].to_list()]
    path = tmp_path_factory.mktemp("weighted") / "log.parquet"
    frame.with_columns(pl.Series("strength", weights, dtype=pl.List(pl.Float64))).write_parquet(path)
    features = dict(tiny_data["features"]) | {
        "tags": {"kind": "bag"},
        "strong": {"kind": "bag", "column": "tags", "weights": "strength", "table": "tags"},
        "labels": {"kind": "bag", "column": "tags", "table": "labels"},
    }
    return tiny_data | {"log": str(path), "features": features}


@pytest.fixture(scope="session")
def configure(weighted_data: dict[str, Any]) -> Configure:
    """``configure(sparsity={...}, model={...})``: the small experiment with blocks changed."""

    def make(**blocks: dict[str, Any]) -> ExperimentConfig:
        base: dict[str, Any] = {
            "data": weighted_data,
            "model": {"dim": 8, "pooling": {"tags": "mean", "labels": "sum", "strong": "sum"}},
            "train": {"epochs": 3, "batch_size": 64, "patience": 9},
        }
        base["model"]["tower"] = {"kind": "moe", "experts": 4, "hidden": 16}
        for name, block in blocks.items():
            base[name] = base.get(name, {}) | block
        return ExperimentConfig.model_validate(base)

    return make


@pytest.fixture(scope="session")
def dataset(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(configure().data, tmp_path_factory.mktemp("data") / "dataset")
