"""The size report, the frontier, feature selection, codes and factors, on one small run and on a demo log."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.synthetic import NOISE, DemoConfig, demo_experiment, generate
from recsys.cli import app
from recsys.config.experiment import ExperimentConfig
from recsys.config.yaml_files import to_yaml
from recsys.exporting.measure import measure
from recsys.studies.codes import code_table, recall_of
from recsys.studies.feature_selection import select_features
from recsys.studies.frontier import grid
from recsys.training.start.svd import bag_factors
from recsys.training.train import train

LEVERS = {
    "row_pruning": {"sparsity": 0.5, "every": 5},
    "unit_pruning": {"sparsity": 0.5, "every": 5},
    "weight_pruning": {"sparsity": 0.8, "layers": ["interaction"]},
    "quantization": {"table_bits": 8},
}


@pytest.fixture(scope="module")
def config(tiny_data: dict[str, Any]) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": tiny_data,
            "model": {"dim": 8, "tower": {"kind": "moe", "experts": 4, "hidden": 16}},
            "train": {"epochs": 2, "batch_size": 64, "patience": 9},
            "sparsity": LEVERS,
        }
    )


@pytest.fixture(scope="module")
def dataset(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(config.data, tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def run(config: ExperimentConfig, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(config, dataset, path)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, Dataset]:
    folder = tmp_path_factory.mktemp("demo")
    generate(DemoConfig(rows=40_000, users=300, items=200), folder / "log.parquet")
    experiment = ExperimentConfig.model_validate(demo_experiment(str(folder / "log.parquet")))
    return experiment, prepare(experiment.data, folder / "dataset")


def test_the_size_report_tells_removal_from_mere_zeros(run: Path) -> None:
    report = measure(run)
    whole, by_name = report.whole, {part.part: part for part in report.parts}
    item, expert = by_name["item"], by_name["tower.mixtures.0.experts.0"]
    assert item.artifact_bytes < item.checkpoint_bytes / 3
    assert expert.flops_after == expert.flops_before / 2
    assert expert.artifact_bytes == expert.checkpoint_bytes / 2
    cross = by_name["interaction.layers.0"]
    assert cross.density < 0.3
    assert cross.flops_after == cross.flops_before
    assert cross.artifact_bytes < cross.checkpoint_bytes / 2
    assert report.total.artifact_bytes < whole.artifact_bytes < whole.folder_bytes
    assert whole.artifact_auc == pytest.approx(whole.auc, abs=0.02)
    assert whole.scored_rows_per_s > 0


def test_the_card_of_an_artifact_holds_the_size_report(run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["export", str(run), str(tmp_path / "artifact")]).exit_code == 0
    result = runner.invoke(app, ["sparsity", str(tmp_path / "artifact"), "--json"])
    parts = json.loads(result.stdout.splitlines()[-1])["parts"]
    assert parts[-1]["part"] == "total"
    assert {"user", "item", "tower.mixtures.0.router"} <= {part["part"] for part in parts}


def test_a_grid_is_every_combination_after_the_config_as_it_is() -> None:
    points = grid(["sparsity.row_pruning.sparsity=0.5,0.9", "model.dim=8,16"])
    assert points[0] == {}
    assert len(points) == 5
    assert points[1] == {"sparsity.row_pruning.sparsity": 0.5, "model.dim": 8}
    assert len(grid(["a=1,2,3", "b=1,2,3"], at_most=4)) == 5
    with pytest.raises(UserError, match="--vary"):
        grid(["model.dim"])


def test_the_frontier_shares_trainings_and_goes_on_where_it_was(
    config: ExperimentConfig, dataset: Dataset, tmp_path: Path
) -> None:
    plain = config.model_copy(update={"sparsity": type(config.sparsity)()})
    (tmp_path / "config.yaml").write_text(to_yaml(plain))
    command = ["frontier", str(tmp_path / "config.yaml"), str(dataset.path), str(tmp_path / "study"), "--json"]
    command += ["--vary", "sparsity.quantization.table_bits=4", "--jobs", "1", "--tolerance", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    trials = {path for path in (tmp_path / "trials").iterdir() if not path.name.startswith(".")}
    assert len(trials) == 3
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["chosen"] == "quantization.table_bits 4"
    written = {path.name for path in (tmp_path / "study").iterdir()}
    assert {"points.csv", "chosen.yaml", "auc-bytes.png", "frontier.html"} <= written
    again = CliRunner().invoke(app, [*command, "--budget", "100000000"])
    assert again.exit_code == 0
    assert trials == {path for path in (tmp_path / "trials").iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("by", ["chi2", "mutual_information", "l1_path"])
def test_statistics_rank_the_planted_noise_last(
    by: str, demo: tuple[ExperimentConfig, Dataset], tmp_path: Path
) -> None:
    result = select_features(*demo, tmp_path / "out", by=by)
    assert set(list(result.ranking)[-len(NOISE) :]) == set(NOISE)
    assert set(result.dropped) == set(NOISE)
    ranking = pl.read_csv(tmp_path / "out" / "ranking.csv")
    assert ranking["feature"].to_list() == list(result.ranking)
    assert "reduced.yaml" in {path.name for path in (tmp_path / "out").iterdir()}


def test_selection_refuses_what_it_cannot_do(demo: tuple[ExperimentConfig, Dataset], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--run"):
        select_features(*demo, tmp_path / "out", by="permutation")
    with pytest.raises(UserError, match="chi2, mutual_information"):
        select_features(*demo, tmp_path / "out", by="chi")


def test_permutation_on_a_run_measures_each_feature(
    config: ExperimentConfig, dataset: Dataset, run: Path, tmp_path: Path
) -> None:
    result = select_features(config, dataset, tmp_path / "out", by="permutation", run=run, keep=2)
    assert set(result.ranking) == {"user", "item", "device", "tags", "price"}
    assert len(result.kept) == 2


@pytest.mark.parametrize("method", ["autoencoder", "dictionary"])
def test_a_table_becomes_a_few_named_codes(method: str, run: Path, tmp_path: Path) -> None:
    result = code_table(run, tmp_path / "codes", "item", method=method, codes=32, active=4)  # type: ignore[arg-type]
    names = pl.read_csv(tmp_path / "codes" / "names.csv")
    assert len(names) == 32
    assert result.codes_in_use > 0.2
    assert 0 <= result.recall["codes"] <= 1
    assert result.auc["codes"] == pytest.approx(result.auc["table"], abs=0.2)


def test_recall_of_the_same_space_is_one_and_of_noise_by_chance() -> None:
    space = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).numpy()
    noise = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)).numpy()
    assert recall_of(space, space) == 1.0
    assert recall_of(space, noise) < 0.25


def test_factors_of_the_bag_matrix_start_tables(config: ExperimentConfig, dataset: Dataset, tmp_path: Path) -> None:
    factors = bag_factors(dataset, dataset.schema.feature_names, 8)
    assert {name: tuple(rows.shape) for name, rows in factors.items()} == {
        table.name: (table.rows, 8) for table in dataset.schema.tables
    }
    start = config.model_copy(
        update={"train": config.train.model_copy(update={"start": "svd"}), "sparsity": type(config.sparsity)()}
    )
    result = train(start, dataset, tmp_path / "run")
    assert result.valid["click"]["auc"] > 0.5
