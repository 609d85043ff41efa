"""A frontier whose points cannot all be measured."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.studies.frontier import Frontier
from recsys.trials.trials import Figures, Trial

POINTS: list[dict[str, Any]] = [{}, {"sparsity.quantization.table_bits": 8}, {"sparsity.quantization.table_bits": 4}]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, Dataset]:
    folder, rng = tmp_path_factory.mktemp("frontier"), np.random.default_rng(0)
    kind = rng.integers(0, 5, 600)
    pl.DataFrame({"kind": kind, "sold": rng.poisson(kind)}).write_parquet(folder / "log.parquet")
    data = {
        "log": str(folder / "log.parquet"),
        "tasks": {"sold": {"column": "sold", "kind": "count"}},
        "split": {"by": "random", "valid": 0.2, "test": 0.2},
        "features": {"kind": {"kind": "id"}},
    }
    config = ExperimentConfig.model_validate({"data": data})
    return config, prepare(config.data, folder / "dataset")


def frontier(experiment: tuple[ExperimentConfig, Dataset], logits: list[float]) -> Frontier:
    """A frontier whose points predict these logits for every row."""
    config, dataset = experiment
    found: list[Frontier] = []

    def point(trial: Trial) -> int:
        (index,) = (index for (index, _), look in found[0]._looks.items() if look == trial)
        return index

    def predicted(trial: Trial, split: str, task: str) -> np.ndarray:
        return np.full(dataset.splits[split], logits[point(trial)])

    def figures(trial: Trial) -> Figures:
        return Figures(model_bytes=100 - point(trial), checkpoint_bytes=400)

    store = SimpleNamespace(figures=figures, logits=predicted)
    workers: Any = SimpleNamespace(engine=SimpleNamespace(threads=1), store=store)
    found.append(Frontier(config, dataset, workers, POINTS))
    return found[0]


@pytest.mark.parametrize("budget", [None, 99])
def test_a_point_whose_metric_is_not_finite_has_failed_and_is_not_chosen(
    experiment: tuple[ExperimentConfig, Dataset], budget: int | None
) -> None:
    searched = frontier(experiment, [0.7, 0.6, 1e4])
    table = searched.table()
    assert table["failed"].to_list()[:2] == ["", ""]
    assert table["failed"][2].endswith("is not finite on the valid split")
    assert not table["frontier"][2]
    assert searched.choose(table, tolerance=1, budget=budget) == 1


def test_without_a_config_to_compare_with_there_is_no_frontier(experiment: tuple[ExperimentConfig, Dataset]) -> None:
    with pytest.raises(UserError, match=r"the config as it is.*is not finite on the valid split"):
        frontier(experiment, [1e4, 0.7, 0.6]).table()
