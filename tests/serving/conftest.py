"""A trained run and its artifact, and a real PostgreSQL for the jobs' database."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import binaries, postgres_server

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run
from recsys.training.train import train


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server that lives as long as the tests."""
    if binaries() is None:
        pytest.skip("PostgreSQL's server programs (initdb, postgres) are not installed")
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """URL of an empty database of its own."""
    import psycopg

    name = f"db{os.urandom(4).hex()}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def trained(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """A data set of the tiny log, and a short run on it."""
    folder = tmp_path_factory.mktemp("trained")
    config = ExperimentConfig.model_validate(
        {
            "data": tiny_data,
            "model": {"dim": 8, "tower": {"kind": "moe", "experts": 4, "top_k": 2, "hidden": 16}},
            "train": {"epochs": 2, "batch_size": 256},
        }
    )
    dataset = prepare(config.data, folder / "dataset")
    train(config, dataset, folder / "run")
    return dataset, folder / "run"


@pytest.fixture(scope="session")
def exported(trained: tuple[Dataset, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of that run, with float32 rows."""
    out = tmp_path_factory.mktemp("exported") / "artifact"
    export_run(trained[1], out)
    return out
