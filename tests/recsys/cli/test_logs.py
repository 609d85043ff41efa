"""Verbs of raw logs, as a user runs them, and the examples."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from recsys.cli import app
from recsys.config.experiment import load_config

EXAMPLES = Path(__file__).parents[3] / "examples"


def recsys(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def result(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("config", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_is_a_valid_experiment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_DATA", "data")
    assert load_config(config).name


def test_an_own_csv_is_inspected_started_from_and_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    log = "examples/own-csv/events.csv"
    page = tmp_path / "log.html"
    shown = recsys("inspect", log, "--html", page)
    assert "is a running number" in shown
    assert "bought?" in shown
    html = page.read_text()
    assert "<svg" in html
    assert "src=" not in html
    assert "http" not in html.replace("http://www.w3.org", "")
    recsys("init", log, tmp_path / "own.yaml")
    for config in (tmp_path / "own.yaml", EXAMPLES / "own-csv" / "experiment.yaml"):
        dataset = tmp_path / config.stem
        assert result(recsys("prepare", config, dataset, "--json"))["rows"] == 1200
        assert result(recsys("inspect", dataset, "--json"))["kind"] == "dataset"
    with pytest.raises(UserError, match="already exists"):
        recsys("init", log, tmp_path / "own.yaml")


def test_what_inspect_finds_as_json(tiny_log: Path) -> None:
    found = result(recsys("inspect", tiny_log, "--json"))
    assert (found["rows"], found["label"], found["time"], found["user"]) == (2000, "click", "time", "user")
    assert {column["name"] for column in found["columns"]} == set(pl.read_parquet_schema(tiny_log))


def test_import_needs_a_name_that_can_be_read_back(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.csv").write_text("label,user,item\n1,2,3\n")
    with pytest.raises(UserError, match=r"ends in \.parquet"):
        recsys("import", "frappe", tmp_path, tmp_path / "log.csv")
    assert result(recsys("import", "frappe", tmp_path, tmp_path / "log.parquet", "--json"))["rows"] == 3


def test_what_is_none_of_ours_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        recsys("inspect", tmp_path / "nothing.parquet")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        recsys("inspect", tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "config.yaml").write_text("name: x")
    with pytest.raises(UserError, match="a run that is not complete"):
        recsys("inspect", tmp_path)
