"""Studies and searches on a Ray cluster: the trials of this machine's processes, to the last bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from recsys.ablation.study import Progress, Study
from recsys.cluster.trials import ray_tasks
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.studies.tuning import tune
from recsys.trials.engines import Engine, processes
from recsys.trials.trials import TrialStore
from recsys.trials.workers import Workers


@pytest.fixture(scope="module")
def here() -> Iterator[Engine]:
    with processes(jobs=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def there(two_nodes) -> Iterator[Engine]:
    address, _ = two_nodes
    with ray_tasks(address) as engine:
        yield engine


def _study(experiment: dict[str, Any], dataset: Dataset, trials: Path, engine: Engine) -> Study:
    content = experiment | {
        "train": experiment["train"] | {"epochs": 1},
        "ablation": {"seeds": 1, "leave_one_out": ["device", "tags"], "mask": ["user"], "selection": "none"},
    }
    config = parse_config(ExperimentConfig, content, source="test")
    return Study(config, dataset, Workers(dataset.path, TrialStore(trials), engine))


def test_a_search_runs_its_trials_there(here, there, experiment, dataset, tmp_path):
    pytest.importorskip("optuna")
    space = {"train.tables.learning_rate": {"low": 0.001, "high": 0.5, "log": True}}
    content = experiment | {"train": experiment["train"] | {"epochs": 1}, "tune": {"trials": 2, "space": space}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    tuned = tune(config, dataset, tmp_path / "here", here)
    elsewhere = tune(config, dataset, tmp_path / "there", replace(there, jobs=1))
    assert (tuned.value, tuned.chosen) == (elsewhere.value, elsewhere.chosen)


def test_a_fault_of_a_trial_is_one_sentence(there, experiment, dataset, tmp_path):
    diverging = experiment | {"train": experiment["train"] | {"dense": {"learning_rate": 1e30}}}
    with pytest.raises(UserError, match="the loss became"):
        _study(diverging, dataset, tmp_path / "trials", there).run()


def test_a_cluster_finds_what_one_machine_finds_even_when_a_node_dies(
    two_nodes, here, there, experiment, dataset, tmp_path
):
    _, kill_second_node = two_nodes
    assert there.jobs == 2
    local = _study(experiment, dataset, tmp_path / "here", here)
    local.run()
    remote = _study(experiment, dataset, tmp_path / "there", there)
    fresh: list[int] = []

    def kill_midway(progress: Progress) -> None:
        fresh.append(progress.fresh)
        if progress.fresh == 1:
            kill_second_node()

    remote.run(kill_midway)
    names = {path.parent.name for path in (tmp_path / "here").glob("*/manifest.json")}
    assert names == {path.parent.name for path in (tmp_path / "there").glob("*/manifest.json")}
    assert len(names) == len(fresh) == 4
    for name in names:
        logits = [pl.read_parquet(tmp_path / place / name / "logits.parquet") for place in ("here", "there")]
        assert_frame_equal(*logits, check_exact=True)
    assert_frame_equal(local.effects(), remote.effects(), check_exact=True)
