"""A trained run and its artifact, and a real PostgreSQL for the jobs' database."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.dataset import Dataset, prepare
from recsys.config import ExperimentConfig
from recsys.exporting import export_run
from recsys.training import train


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server that lives as long as the tests, reached by a socket in a folder of its own."""
    found = sorted(glob("/usr/lib/postgresql/*/bin")) + ([str(Path(p).parent)] if (p := shutil.which("initdb")) else [])
    if not found:
        pytest.skip("PostgreSQL's server binaries (initdb, postgres) are not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            [f"{found[-1]}/{command[0]}", *command[1:]], check=True, user=user, capture_output=True, cwd=folder
        )

    run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200"
    run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


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
