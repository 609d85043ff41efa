"""What is secret in a config reaches no file that prepare, train, export and score write, and nothing they print."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from recsys.cli import app

FOLDER, PASSWORD = "folder-hush-7f3a", "password-hush-9c1e"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a tracking server was told, by an MLflow that only listens."""
    told: dict[str, Any] = {"batches": []}
    client = SimpleNamespace(
        get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="0"),
        create_run=lambda experiment, run_name: SimpleNamespace(info=SimpleNamespace(run_id="1")),
        log_batch=lambda run, **batch: told["batches"].append(batch),
        set_terminated=lambda run, status: None,
    )
    fake = ModuleType("mlflow")
    fake.entities = SimpleNamespace(Param=lambda *pair: pair, Metric=lambda *row: row)  # type: ignore[attr-defined]
    fake.MlflowClient = lambda address: told.update(address=address) or client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return told


@pytest.fixture
def secret(tiny_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a secret name, its log and a side table in it."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    frame = pl.read_parquet(tiny_log)
    frame.drop("device").write_parquet(folder / "log.parquet")
    frame.group_by("item").agg(pl.col("device").first()).write_parquet(folder / "items.parquet")
    monkeypatch.setenv("SECRET_DIR", str(folder))
    monkeypatch.setenv("SECRET_URI", f"http://me:{PASSWORD}@tracking.example:5000")
    return folder


@pytest.fixture
def config(tiny_data: dict[str, Any], tmp_path: Path) -> Path:
    data = tiny_data | {
        "log": "${SECRET_DIR}/log.parquet",
        "joins": [{"table": "${SECRET_DIR}/items.parquet", "on": "item"}],
    }
    content = {
        "data": data,
        "model": {"dim": 4, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [8]}},
        "train": {"epochs": 1, "batch_size": 256, "mlflow": "${SECRET_URI}"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def recsys(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below ``folder``, as it lies there and as its reader shows it."""
    for file in (file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        yield file, content.decode("latin-1")
        if file.suffix == ".parquet":
            frame = pl.read_parquet(file)
            yield file, "\n".join([frame.write_ndjson(), str(pl.read_parquet_metadata(file))])
        elif file.suffix == ".arrow":
            yield file, str(pa.ipc.open_file(pa.memory_map(str(file))).read_all().to_pylist())


@pytest.mark.parametrize("tracking", ["${SECRET_URI}", f"http://me:{PASSWORD}@tracking.example:5000?token={PASSWORD}"])
def test_no_secret_is_written_or_printed(
    secret: Path, config: Path, told: dict[str, Any], tmp_path: Path, tracking: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "written"
    out.mkdir()
    override = f"train.mlflow={tracking}"
    said = [
        recsys("prepare", config, out / "dataset", override, "--json"),
        recsys("train", config, out / "dataset", out / "run", override, "--json"),
        recsys("evaluate", out / "run", "--json"),
        recsys("report", out / "run", "--out", out / "report.html"),
        recsys("export", out / "run", out / "artifact", "--json"),
        recsys("export", out / "run", out / "packed", "export.packed=true", "--json"),
        recsys("inspect", out / "artifact", "--json"),
        recsys("score", out / "artifact", secret / "log.parquet", out / "scores", "--json"),
    ]
    assert PASSWORD in told["address"]
    assert told["batches"]
    assert PASSWORD not in str(told["batches"])
    for hidden in (FOLDER, PASSWORD):
        leaks = [str(file) for file, text in texts(out) if hidden in text]
        assert leaks == []
        assert hidden not in "".join(said) + caplog.text
    assert "${SECRET_DIR}/log.parquet" in (out / "dataset" / "manifest.json").read_text()
    assert "${SECRET_DIR}/items.parquet" in (out / "artifact" / "encoder.json").read_text()
    scores = pl.read_parquet(out / "scores" / "part-*.parquet")
    assert len(scores) == 2000


def test_errors_name_the_variable(secret: Path, config: Path, tmp_path: Path) -> None:
    os.remove(secret / "items.parquet")
    for damage in (None, b"PAR1 damaged"):
        if damage is not None:
            (secret / "items.parquet").write_bytes(damage)
        with pytest.raises(UserError) as refused:
            recsys("prepare", config, tmp_path / "dataset")
        assert FOLDER not in str(refused.value)
        assert "${SECRET_DIR}/items.parquet" in str(refused.value)


def test_a_missing_variable_is_named(
    secret: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRET_DIR")
    with pytest.raises(UserError, match="environment variable SECRET_DIR, which is not set"):
        recsys("prepare", config, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
