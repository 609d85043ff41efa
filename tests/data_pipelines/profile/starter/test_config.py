"""The recipe of a starter config: what it asks of the model and of training, by what the log is."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.profile.inspection import LogProfile, inspect_log
from data_pipelines.profile.starter.config import starter_config
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


def with_items(profile: LogProfile, distinct: int) -> LogProfile:
    columns = [c.model_copy(update={"distinct": distinct}) if c.name == "item" else c for c in profile.columns]
    return profile.model_copy(update={"columns": tuple(columns)})


def test_the_model_contains_logistic_regression_and_starts_from_it(profile: LogProfile, tmp_path: Path) -> None:
    for log in (with_items(profile, 30), with_items(profile, 100), with_items(profile, 300_000)):
        config = written(log, tmp_path)
        assert config.model.wide
        assert config.train.start == "linear"
        assert config.train.tables.wide is not None
        assert config.train.tables.wide.learning_rate == 0
        assert config.train.monitor == {"logloss": -1}


def test_tables_of_many_values_learn_without_updating_every_row(profile: LogProfile, tmp_path: Path) -> None:
    assert written(profile, tmp_path).train.tables.optimizer == "adam"
    assert written(with_items(profile, 300_000), tmp_path).train.tables.optimizer == "rowwise_adagrad"


def test_weights_are_averaged_unless_tables_are_so_large_that_it_takes_most_of_a_step(
    profile: LogProfile, tmp_path: Path
) -> None:
    assert written(with_items(profile, 300_000), tmp_path).train.ema == 0.99
    assert written(with_items(profile, 3_000_000), tmp_path).train.ema is None


def test_rows_are_normalised_where_values_have_events_enough(profile: LogProfile, tmp_path: Path) -> None:
    few, many = (written(with_items(profile, distinct), tmp_path) for distinct in (100, 30))
    assert many.model == few.model.model_copy(update={"batch_norm": True})
    assert many.train == few.train
    rare = with_items(profile, 30).model_copy(update={"label_rate": 0.01})
    assert written(rare, tmp_path).model == few.model


def test_numbers_are_piecewise_where_the_log_shows_how_their_effect_bends(profile: LogProfile, tmp_path: Path) -> None:
    def price(log: LogProfile) -> dict[str, Any]:
        return written(log, tmp_path).data.features["price"].model_dump()

    large = profile.model_copy(update={"rows": 20_000})
    assert price(profile)["transform"] == "standardize"
    assert (price(large)["transform"], price(large)["buckets"]) == ("piecewise", 16)
    assert price(with_items(large, 5_000))["transform"] == "standardize"
    assert price(large.model_copy(update={"label_rate": 0.01}))["transform"] == "standardize"


def test_a_label_that_is_a_number_keeps_its_own_monitor(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"item": [1, 2, 3, 4] * 50, "spent": np.linspace(0, 9, 200)}).write_parquet(path)
    amounts = inspect_log(str(path), label="spent").model_copy(update={"label_at_least": None})
    assert written(amounts, tmp_path).train.monitor is None


def test_where_users_return_to_items_half_of_the_negatives_are_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hours = np.arange(600) * 3600 + 1_600_000_000
    for name, items, share in (("return", 5, 0.5), ("once", 100_000, 0.0)):
        path = tmp_path / f"{name}.parquet"
        rows = {"user_id": rng.integers(0, 20, 600), "item_id": rng.integers(0, items, 600), "timestamp": hours}
        pl.DataFrame(rows).write_parquet(path)
        sampling = written(inspect_log(str(path), label=None), tmp_path).data.sampling
        assert sampling is not None
        assert sampling.repeats == share
