"""A small experiment of a mixture, and its data set."""

from typing import Any

import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig


@pytest.fixture(scope="module")
def experiment(tiny_data: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": 3,
        "data": tiny_data,
        "model": {"dim": 8, "tower": {"kind": "moe", "experts": 4, "hidden": 16, "noise": 0.1, "dropout": 0.1}},
        "train": {"epochs": 3, "batch_size": 128, "checkpoint_every": 5, "patience": 9},
    }


@pytest.fixture(scope="module")
def dataset(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = ExperimentConfig.model_validate(experiment)
    return prepare(config.data, tmp_path_factory.mktemp("data") / "dataset")
