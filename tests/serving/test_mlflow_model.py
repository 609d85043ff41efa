"""An artifact as a model of MLflow scores as the scorer does. Skipped where MLflow is not installed."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from portable_examples import MODELS, ROWS, write

from data_pipelines.errors import UserError
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer
from serving.mlflow_model import mlflow_model, write_mlflow

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
pyfunc = pytest.importorskip("mlflow.pyfunc", reason="pandas, which models of MLflow need, is not installed")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(tmp_path_factory.mktemp("artifact"), MODELS["cross"])


@pytest.fixture(scope="module")
def saved(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "model"
    write_mlflow(artifact, out)
    return out


def test_it_scores_as_the_scorer_does(artifact: Artifact, saved: Path) -> None:
    expected = Scorer(artifact).score(ROWS)
    found = pyfunc.load_model(str(saved)).predict(ROWS.to_pandas())
    assert list(found.columns) == expected.columns
    for task in ("click", "stars"):
        np.testing.assert_array_equal(found[task], expected[task])
    assert [None if value != value else value for value in found["user"]] == expected["user"].to_list()


def test_its_own_input_example_can_be_scored(artifact: Artifact, saved: Path) -> None:
    model = pyfunc.load_model(str(saved))
    example = model.input_example
    assert example["item"].tolist() == [artifact.encoder.vocabulary("item")["value"][0]]
    assert np.isfinite(model.predict(example)["click"]).all()


def test_the_signature_names_what_features_read_and_what_scores_have(artifact: Artifact, saved: Path) -> None:
    signature = pyfunc.load_model(str(saved)).metadata.signature
    assert signature.inputs.required_input_names() == ["age", "item", "price", "tags", "user", "words"]
    assert signature.outputs.input_names() == [name for name in Scorer(artifact).score(ROWS).columns if name != "user"]
    with pytest.raises(Exception, match="item"):
        pyfunc.load_model(str(saved)).predict(ROWS.drop("item").to_pandas())


def test_numbers_and_text_of_one_value_score_the_same(saved: Path) -> None:
    model, text = pyfunc.load_model(str(saved)), ROWS.with_columns(pl.col("item").cast(pl.String))
    found, expected = model.predict(text.to_pandas()), model.predict(ROWS.to_pandas())
    np.testing.assert_array_equal(found["click"], expected["click"])


def test_no_file_of_it_is_a_pickle(saved: Path) -> None:
    files = [file for file in saved.rglob("*") if file.is_file()]
    assert {"MLmodel", "requirements.txt", "input_example.json"} <= {file.name for file in files}
    assert [file for file in files if file.suffix in (".pkl", ".pickle") or file.read_bytes()[:1] == b"\x80"] == []
    assert "sparse-recsys==" in (saved / "requirements.txt").read_text()


def test_it_can_be_registered(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(str(tmp_path / "store"))
    try:
        with mlflow.start_run():
            pyfunc.log_model(name="clicks", registered_model_name="clicks", **mlflow_model(artifact))
        found = pyfunc.load_model("models:/clicks/1")
        assert found.metadata.metadata == {"name": "tiny", "fingerprint": artifact.fingerprint}
        np.testing.assert_array_equal(found.predict(ROWS.to_pandas())["click"], Scorer(artifact).score(ROWS)["click"])
    finally:
        mlflow.set_tracking_uri(None)


def test_an_export_switches_the_telemetry_off(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    mlflow_model(artifact)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    mlflow_model(artifact)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


def test_nothing_is_written_over_what_is_there(artifact: Artifact, saved: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        write_mlflow(artifact, saved)
    assert json.loads((saved / "manifest.json").read_text())["kind"] == "mlflow"
