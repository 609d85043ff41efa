"""A disk that takes no more is one sentence that names the path, whatever library was writing.

A limit on the size of files stands for the full disk: the system refuses the same writes, with another code.
"""

import errno
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.by_row import ByRow
from data_pipelines.errors import UnavailableError, UserError, disk_fault, writing
from data_pipelines.features.config import DataConfig
from recsys.config.experiment import load_config
from recsys.exporting.export import export_run
from recsys.training.train import train
from serving.artifact.artifact import Artifact
from serving.batch import inputs
from serving.batch.batch_job import run_job
from serving.http.jobs import JobStore

REFUSED = r"cannot be written \((File too large|No space left on device)\): free some space"


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("after_bytes", [0, 1000, 8000])
def test_preparing(tiny_data: dict[str, Any], tmp_path: Path, after_bytes: int) -> None:
    past = {"likes": {"kind": "history", "of": ["item"], "last": 5}}
    config = DataConfig.model_validate(tiny_data | {"features": tiny_data["features"] | past})
    with full_disk(after_bytes), pytest.raises(UnavailableError, match=REFUSED):
        prepare(config, tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after_bytes", [3000, 20_000])
@pytest.mark.parametrize("aside", [False, True])
def test_training(trained: tuple[Dataset, Path], tmp_path: Path, after_bytes: int, aside: bool) -> None:
    dataset, run = trained
    config = load_config(run / "config.yaml")
    config = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_aside": aside})})
    with full_disk(after_bytes), pytest.raises(UserError, match=REFUSED):
        train(config, dataset, tmp_path / "run")
    resumed = train(config, dataset, tmp_path / "run", resume=True)
    assert resumed.steps > 0


@pytest.mark.parametrize("after_bytes", [0, 3000])
@pytest.mark.parametrize("packed", ["false", "true"])
def test_exporting(trained: tuple[Dataset, Path], tmp_path: Path, after_bytes: int, packed: str) -> None:
    with full_disk(after_bytes), pytest.raises(UnavailableError, match=rf"artifact {REFUSED}"):
        export_run(trained[1], tmp_path / "artifact", [f"export.packed={packed}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_scoring_goes_on_when_there_is_space_again(
    exported: Path, tiny_log: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 250)
    rows = pl.read_parquet(tiny_log).drop("click", "rating")
    source = tmp_path / f"rows.{format}"
    if format == "parquet":
        rows.write_parquet(source, row_group_size=100)
    else:
        rows.with_columns(pl.col("tags").list.join(",")).write_csv(source)
    with full_disk(2000), pytest.raises(UnavailableError, match=rf"out.* {REFUSED}"):
        run_job(Artifact.open(exported), str(source), tmp_path / "out")
    assert run_job(Artifact.open(exported), str(source), tmp_path / "out").rows_out == 2000


def test_a_jobs_database(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    store.register("a", "/artifacts/a", "f" * 32)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no more than there are
    with pytest.raises(UnavailableError, match=rf"jobs\.db {REFUSED}"):
        store.submit(artifact="a", source="in" * 50_000, output="out", options={})
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    store.submit(artifact="a", source="in", output="after", options={})


def test_records_that_wait_on_disk(tmp_path: Path) -> None:
    records, rows = ByRow(tmp_path / "records", (("value", "<f8"),)), np.arange(100_000, dtype=np.uint32)
    with full_disk(5000), pytest.raises(UnavailableError, match=REFUSED), writing(tmp_path):
        records.add(rows, value=rows.astype(np.float64))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (pl.exceptions.ComputeError("No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("[Errno 28] Error writing bytes to file"), "No space left on device"),
        (sqlite3.OperationalError("database or disk is full"), "No space left on device"),
        (OSError(errno.ENOENT, "No such file or directory"), None),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_only_what_a_disk_refuses_is_its_fault(error: Exception, reason: str | None) -> None:
    assert disk_fault(error) == reason
    wrapped = RuntimeError("the checkpoint failed")
    wrapped.__cause__ = error
    assert disk_fault(wrapped) == reason


def test_what_the_user_is_told_already_stays_as_it_is() -> None:
    with pytest.raises(UserError, match="one sentence"), writing("a file"):
        raise UserError("one sentence")
