"""Scoring on a Ray cluster: the bytes of the local engine, whatever dies on the way."""

import shutil
import threading
from pathlib import Path

import polars as pl
import pytest

from data_pipelines.errors import UserError
from recsys.cluster.scoring import ray_engine
from serving.artifact.artifact import Artifact
from serving.batch import inputs
from serving.batch.batch_job import run_job


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 100)


@pytest.fixture
def rows(tiny_log: Path, tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pl.read_parquet(tiny_log).drop("click", "rating").write_parquet(path, row_group_size=100)
    return path


def test_a_fault_of_the_input_is_one_sentence(two_nodes, artifact, rows, tmp_path):
    address, _ = two_nodes
    pl.read_parquet(rows).drop("item").write_parquet(rows, row_group_size=100)
    with pytest.raises(UserError, match="item"):
        run_job(Artifact.open(artifact), str(rows), tmp_path / "out", engine=ray_engine(address))
    assert not (tmp_path / "out").exists()


def test_a_node_with_another_artifact_is_refused(two_nodes, artifact, rows, tmp_path):
    address, _ = two_nodes
    elsewhere = tmp_path / "artifact"
    shutil.copytree(artifact, elsewhere)
    opened = Artifact.open(elsewhere)
    manifest = elsewhere / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "experiment"', '"name": "another"'))
    with pytest.raises(UserError, match="is not the driver's artifact"):
        run_job(opened, str(rows), tmp_path / "out", engine=ray_engine(address))


def test_a_cluster_scores_as_one_process_even_when_a_node_dies(two_nodes, artifact, rows, tmp_path):
    address, kill_second_node = two_nodes
    opened = Artifact.open(artifact)
    run_job(opened, str(rows), tmp_path / "local", threads=1)

    killer = threading.Thread(target=kill_second_node)
    parts_done: list[int] = []

    def kill_midway(rows: int, total: int) -> None:
        parts_done.append(rows)
        if len(parts_done) == 6:
            killer.start()

    result = run_job(opened, str(rows), tmp_path / "ray", progress=kill_midway, engine=ray_engine(address))
    killer.join()
    assert (result.rows_in, result.rows_out, result.parts) == (2000, 2000, 20)
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ray").iterdir())
    for name in names:
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes(), name
