"""MLflow hears of what ``metrics.parquet`` holds; where it is not installed these tests are skipped."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig
from recsys.training.mlflow_run import Names
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


def test_a_server_that_does_not_answer_is_named_and_training_goes_on(
    content: dict[str, Any],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = content | {"train": content["train"] | {"mlflow": "http://me:hush@127.0.0.1:9"}}
    result = train(ExperimentConfig.model_validate(away), dataset, tmp_path / "run")
    (note,) = [note for note in result.notes if "mlflow" in note]
    assert note.startswith("train.mlflow: http://***@127.0.0.1:9 cannot be used (")
    assert "Connection refused" in note
    assert "hush" not in caplog.text
    assert len(pl.read_parquet(tmp_path / "run" / "metrics.parquet")) > 0


def test_a_tracker_that_fails_in_the_middle_ends_no_training(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch's measurements meet a disk that is full; the weights are those of a training without MLflow."""
    sent: list[Any] = []
    log_batch = mlflow.MlflowClient.log_batch

    def fails(client: Any, run: str, metrics: Any = (), params: Any = ()) -> None:
        sent.append(metrics)
        if any(metric.step > 16 for metric in metrics):
            raise OSError(28, "No space left on device")
        log_batch(client, run, metrics=metrics, params=params)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fails)
    tracked = content | {"train": content["train"] | {"mlflow": str(tmp_path / "store")}}
    result = train(ExperimentConfig.model_validate(tracked), dataset, tmp_path / "run")
    plain = train(ExperimentConfig.model_validate(content), dataset, tmp_path / "plain")
    assert "No space left on device" in str(result.notes)
    assert sent[-1][0].step > 16, "nothing is sent after the first failure"
    assert result.valid == plain.valid


@pytest.mark.parametrize(
    "name",
    ["valid/click/auc", "a>b", "a/../b", "/a", "a/", "a//b", ".", "..", "x" * 300, "ä ß", "a:b", "50% off", "", "a\nb"],
)
def test_every_name_becomes_one_that_mlflow_accepts(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(Names()(name))


def test_names_stay_apart_and_stay_the_same() -> None:
    names = Names()
    assert [names(name) for name in ("a>b", "a<b", "a_b", "a>b")] == ["a_b", "a_b_2", "a_b_3", "a_b"]
