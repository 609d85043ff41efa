"""MLflow hears of what ``metrics.parquet`` holds; where it is not installed these tests are skipped."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.training.train import train

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def content(tiny_data: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": tiny_data,
        "model": {"dim": 4, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [8]}},
        "train": {"epochs": 2, "batch_size": 100, "patience": 9},
    }


@pytest.fixture(scope="module")
def dataset(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(ExperimentConfig.model_validate(content).data, tmp_path_factory.mktemp("data") / "dataset")


def test_a_folder_holds_the_config_and_the_metrics_of_a_run(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    tracked = content | {"train": content["train"] | {"mlflow": str(store)}}
    train(ExperimentConfig.model_validate(tracked), dataset, tmp_path / "run")
    client = mlflow.MlflowClient(str(store))
    (found,) = client.search_runs([client.get_experiment_by_name("recsys").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["train.epochs"] == "2"
    kept = pl.read_parquet(tmp_path / "run" / "metrics.parquet").filter(pl.col("metric") == "click/auc")
    told = client.get_metric_history(found.info.run_id, "valid/click/auc")
    assert [(metric.step, metric.value) for metric in told] == list(kept.select("step", "value").iter_rows())


def test_a_server_that_does_not_answer_is_named(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = content | {"train": content["train"] | {"mlflow": "http://127.0.0.1:9"}}
    with pytest.raises(UserError, match=r"train\.mlflow: http://127\.0\.0\.1:9 cannot be used .*Connection refused"):
        train(ExperimentConfig.model_validate(away), dataset, tmp_path / "run")
