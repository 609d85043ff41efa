"""The page about a run, and about runs side by side."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.evaluation.baselines.measure import write_baselines
from recsys.evaluation.evaluate import evaluate
from recsys.reports.report import Extras, write_report
from recsys.training.train import train

MODEL = {"dim": 8, "tower": {"kind": "moe", "experts": 3, "top_k": 1, "hidden": 8}}


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(_config(tiny_data, 0).data, tmp_path_factory.mktemp("reports") / "dataset")


def _config(tiny_data: dict[str, Any], seed: int) -> ExperimentConfig:
    content = {"data": tiny_data, "model": MODEL, "train": {"epochs": 2, "batch_size": 500}, "seed": seed}
    return parse_config(ExperimentConfig, content, source="test")


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tiny_data: dict[str, Any]) -> list[Path]:
    folder = dataset.path.parent
    for seed in (0, 1):
        train(_config(tiny_data, seed), dataset, folder / f"run-{seed}")
        evaluate(folder / f"run-{seed}", dataset, "test")
    write_baselines(folder / "run-0", dataset, "test", ["popularity"])
    return [folder / "run-0", folder / "run-1"]


def test_a_run_on_one_page(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs[:1], tmp_path / "report.html", extras=Extras(ceiling=0.99)).read_text()
    auc = evaluate(runs[0], Dataset.open(runs[0].parent / "dataset"), "test").tasks["click"]["auc"]
    assert f"{auc:.4f}" in page
    for said in (
        "Reliability",
        "popularity",
        "best reachable",
        "Load of",
        "next best",
        "what each expert is worth",
        "Sparsity",
        "total",
    ):
        assert said in page, said
    assert page.count("<svg") >= 5
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "prefers-color-scheme: dark" in page


def test_runs_side_by_side_show_their_difference(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Comparison of runs" in page
    assert "Difference to run-0: click" in page


def test_runs_judged_on_other_rows_are_not_subtracted(runs: list[Path], tmp_path: Path) -> None:
    predictions = runs[1] / "predictions" / "test.parquet"
    before = predictions.read_bytes()
    pl.read_parquet(predictions).head(100).write_parquet(predictions)
    try:
        assert "other rows" in write_report(runs, tmp_path / "report.html").read_text()
    finally:
        predictions.write_bytes(before)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
