"""A Ray cluster of two nodes on this machine, and a small experiment."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run
from recsys.training.train import train

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a Ray cluster of two nodes, and what kills the second of them."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
    node = cluster.add_node(**NODE)
    yield cluster.address, lambda: cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()


@pytest.fixture(scope="session")
def experiment(tiny_data: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": tiny_data,
        "model": {"dim": 4, "tower": {"kind": "moe", "experts": 4, "hidden": 8}},
        "train": {"epochs": 2, "batch_size": 64, "checkpoint_every": 5, "patience": 9},
    }


@pytest.fixture(scope="session")
def dataset(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = ExperimentConfig.model_validate(experiment)
    return prepare(config.data, tmp_path_factory.mktemp("prepared") / "dataset")


@pytest.fixture(scope="session")
def config_file(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture(scope="session")
def artifact(experiment: dict[str, Any], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    train(ExperimentConfig.model_validate(experiment), dataset, folder / "run")
    export_run(folder / "run", folder / "artifact")
    return folder / "artifact"
