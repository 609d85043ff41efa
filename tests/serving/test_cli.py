"""The verbs of serving, as a user runs them."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from recsys.cli import app
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer
from serving.portable.scorer import PortableScorer


def recsys(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return str(error.value)


def test_export_verify_and_score(trained, tiny_log, tmp_path):
    _, run = trained
    result = recsys("export", run, tmp_path / "artifact", "sparsity.quantization.table_bits=4", "export.sample=500")
    assert result["tables"]["item"]["bits"] == 4
    assert result["bytes"] == sum(p.stat().st_size for p in (tmp_path / "artifact").rglob("*") if p.is_file()) - (
        (tmp_path / "artifact" / "manifest.json").stat().st_size
    )
    assert 0.4 < result["metrics"]["test"]["auc"] < 1
    verified = recsys("verify", tmp_path / "artifact", "--against", run)
    assert 0 < verified["mean_difference"] < 0.1
    assert verified["run"]["click"]["auc"] == pytest.approx(verified["artifact"]["click"]["auc"], abs=0.05)
    scored = recsys("score", tmp_path / "artifact", tiny_log, tmp_path / "scores", "--logits")
    assert (scored["rows_in"], scored["rows_out"]) == (2000, 2000)
    scores = pl.read_parquet(tmp_path / "scores" / "part-*.parquet")
    assert scores.columns == ["user", "item", "click", "click:logit"]


def test_export_for_numpy_alone(trained, exported, tiny_log, tmp_path):
    recsys("export", trained[1], tmp_path / "portable", "--format", "portable")
    rows = pl.read_parquet(tiny_log).head(50)
    found = PortableScorer(tmp_path / "portable").score(rows.to_dicts())
    expected = Scorer(Artifact.open(exported)).score(rows)
    assert [row["item"] for row in found] == expected["item"].to_list()
    np.testing.assert_allclose([row["click"] for row in found], expected["click"], atol=1e-5)
    assert "already exists" in refused("export", trained[1], tmp_path / "portable", "--format", "portable")


def test_export_as_a_model_of_mlflow(trained, tiny_log, exported, tmp_path):
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="MLflow is not installed")
    assert recsys("export", trained[1], tmp_path / "model", "--format", "mlflow") == {"mlflow": str(tmp_path / "model")}
    rows = pl.read_parquet(tiny_log).head(50)
    found = pyfunc.load_model(str(tmp_path / "model")).predict(rows.to_pandas())
    np.testing.assert_array_equal(found["click"], Scorer(Artifact.open(exported)).score(rows)["click"])


def test_objects_show_a_table_in_a_notebook(trained, exported):
    dataset, _ = trained
    assert "<td>train 1,600, valid 200, test 200</td>" in dataset._repr_html_()
    assert "test split" in Artifact.open(exported)._repr_html_()


def test_what_a_user_can_mend_is_said_in_one_sentence(trained, exported, tiny_log, tmp_path):
    _, run = trained
    assert "already exists" in refused("export", run, exported)
    assert "is not a run" in refused("export", tmp_path, tmp_path / "out")
    assert "unknown key" in refused("export", run, tmp_path / "out", "sparsity.quantisation.table_bits=4")
    assert "not a directory" in refused("score", tmp_path / "none", tiny_log, tmp_path / "out")
    assert "not an artifact" in refused("score", run, tiny_log, tmp_path / "out")


def test_a_changed_byte_is_noticed(exported: Path, tiny_log, tmp_path):
    copy = tmp_path / "artifact"
    shutil.copytree(exported, copy)
    tables = bytearray((copy / "tables.safetensors").read_bytes())
    tables[-1] ^= 1
    (copy / "tables.safetensors").write_bytes(tables)
    assert "checksum does not match" in refused("score", copy, tiny_log, tmp_path / "out")
