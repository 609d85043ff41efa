"""The recipe of a starter config: what it asks of the model and of training, by what the log is."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipelines.profile.inspection import LogProfile, inspect_log
from data_pipelines.profile.starter_config import starter_config
from recsys.config.experiment import ExperimentConfig, load_config


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> LogProfile:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("starter") / "log.parquet"
    columns = {"item": rng.integers(0, 30, 500), "price": rng.random(500), "click": rng.integers(0, 2, 500)}
    pl.DataFrame(columns).write_parquet(path)
    return inspect_log(str(path), label="click")


def written(profile: LogProfile, folder: Path) -> ExperimentConfig:
    (folder / "config.yaml").write_text(starter_config(profile))
    return load_config(folder / "config.yaml")


def test_the_model_contains_logistic_regression_and_starts_from_it(profile: LogProfile, tmp_path: Path) -> None:
    config = written(profile, tmp_path)
    assert config.model.wide
    assert config.train.start == "linear"
    assert config.train.tables.wide is not None
    assert config.train.tables.wide.learning_rate == 0
    assert config.train.monitor == {"logloss": -1}


def test_tables_of_many_values_learn_without_updating_every_row(profile: LogProfile, tmp_path: Path) -> None:
    assert written(profile, tmp_path).train.tables.optimizer == "adam"
    grown = [c.model_copy(update={"distinct": 300_000}) if c.name == "item" else c for c in profile.columns]
    large = written(profile.model_copy(update={"columns": tuple(grown)}), tmp_path)
    assert large.train.tables.optimizer == "rowwise_adagrad"
    assert large.train.tables.wide == written(profile, tmp_path).train.tables.wide


def test_a_label_that_is_a_number_keeps_its_own_monitor(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"item": [1, 2, 3, 4] * 50, "spent": np.linspace(0, 9, 200)}).write_parquet(path)
    amounts = inspect_log(str(path), label="spent").model_copy(update={"label_at_least": None})
    config = written(amounts, tmp_path)
    assert config.train.monitor is None
    assert config.train.start == "linear"
