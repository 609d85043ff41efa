"""What a service and a job do when the files below them change: one sentence, and no wrong score."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from data_pipelines.disk.storage import MANIFEST, Manifest, seal
from data_pipelines.errors import UnavailableError, UserError
from recsys.exporting.export import export_run
from serving.artifact.artifact import DENSE, MODEL, TABLES, Artifact
from serving.batch import inputs
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer
from serving.http.allowed_paths import Roots
from serving.http.jobs import Job, JobStore
from serving.http.live import LiveArtifacts
from serving.http.service import create_app
from serving.http.worker import Worker


@pytest.fixture
def root(exported: Path, tiny_log: Path, tmp_path: Path) -> Path:
    """A data root with an artifact and 2,000 rows in it."""
    root = tmp_path / "root"
    shutil.copytree(exported, root / "artifact")
    pl.read_parquet(tiny_log).drop("click", "rating").write_parquet(root / "rows.parquet", row_group_size=100)
    return root


@pytest.fixture
def store(root: Path, tmp_path: Path) -> JobStore:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    store.register("a", str(root / "artifact"), Artifact.open(root / "artifact").fingerprint)
    return store


def submit(store: JobStore, root: Path, output: str = "out") -> Job:
    return store.submit(
        artifact="a", source=str(root / "rows.parquet"), output=str(root / output), options={}, idempotency_key=None
    )[0]


def work(store: JobStore, root: Path, worker: Worker | None = None) -> None:
    (worker or Worker(store, Roots([root]), tick_s=0.05)).run(threading.Event(), until_empty=True)


def ask(client: TestClient, root: Path) -> tuple[int, str]:
    rows = pl.read_parquet(root / "rows.parquet").head(3).to_dicts()
    answer = client.post("/v1/score", json={"rows": rows})
    return answer.status_code, answer.json().get("detail", "")


def with_infinite_weights(artifact: Path) -> None:
    """Change an artifact so that it is whole, but scores nothing."""
    tensors = load_file(artifact / DENSE)
    name = max(tensors, key=lambda name: tensors[name].numel() if tensors[name].is_floating_point() else 0)
    save_file(tensors | {name: tensors[name] * np.nan}, artifact / DENSE)
    manifest = Manifest.model_validate_json((artifact / MANIFEST).read_bytes())
    (artifact / MANIFEST).unlink()
    seal(artifact, "artifact", manifest.meta)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_job_does_not_use_another_artifact_than_it_was_submitted_with(store, root, trained):
    worker = Worker(store, Roots([root]), tick_s=0.05)
    submit(store, root, "before")
    work(store, root, worker)
    job = submit(store, root)
    export_run(trained[1], root / "artifact", ["sparsity.quantization.table_bits=8"], replace=True)
    work(store, root, worker)
    assert store.get(job.id).state == "failed"
    assert "holds another artifact" in store.get(job.id).error
    assert "submit the job again" in store.get(job.id).error
    assert not (root / "out").exists()


def test_requests_are_not_scored_with_another_artifact_than_was_registered(store, root, trained):
    export_run(trained[1], root / "artifact", ["sparsity.quantization.table_bits=8"], replace=True)
    with pytest.raises(UserError, match=r"holds another artifact .* than was registered"):
        LiveArtifacts(store, Roots([root])).get()


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", [MODEL, TABLES, DENSE, "encoder.json", MANIFEST])
def test_a_damaged_artifact_fails_a_job_in_one_sentence(store, root, name: str, damage: Callable[[Path], None]):
    worker = Worker(store, Roots([root]), tick_s=0.05)
    submit(store, root, "before")
    work(store, root, worker)
    damage(root / "artifact" / name)
    job = submit(store, root)
    work(store, root, worker)
    if name != MANIFEST:  # an artifact that is mapped needs its manifest no more
        assert store.get(job.id).state == "failed"
        assert name in store.get(job.id).error
        assert "internal error" not in store.get(job.id).error
    again = submit(store, root, "again")
    work(store, root)
    assert store.get(again.id).state == "failed"
    assert name in store.get(again.id).error
    assert "internal error" not in store.get(again.id).error


@pytest.mark.parametrize("name", [TABLES, MODEL])
def test_a_mapped_file_cut_in_place_is_told_before_it_is_read(client, root, name):
    assert ask(client, root)[0] == 200
    truncate(root / "artifact" / name)
    status, detail = ask(client, root)
    assert status == 503
    assert f"{name} was written in place" in detail


def test_an_artifact_replaced_as_a_whole_is_still_served_as_it_was_registered(client, root, trained):
    assert ask(client, root)[0] == 200
    export_run(trained[1], root / "artifact", ["sparsity.quantization.table_bits=8"], replace=True)
    assert ask(client, root)[0] == 200


def test_scores_that_are_not_finite_are_an_error_wherever_they_are_asked_for(root, tmp_path):
    with_infinite_weights(root / "artifact")
    artifact = Artifact.open(root / "artifact", verify="full")
    rows = pl.read_parquet(root / "rows.parquet")
    with pytest.raises(UnavailableError, match=r"artifact gives NaN or infinite scores for 2,000 of 2,000 rows.*row 0"):
        Scorer(artifact).score(rows)
    with pytest.raises(UnavailableError, match="NaN or infinite"):
        PairScorer(Scorer(artifact), rows.select("item", "tags", "price").head(3)).top_k(
            rows.select("user", "device"), 2
        )
    with pytest.raises(UnavailableError, match="NaN or infinite"):
        run_job(artifact, str(root / "rows.parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_the_rows_whose_scores_are_not_finite_are_counted(root, monkeypatch):
    monkeypatch.setattr(inputs, "PART_ROWS", 500)
    scorer, logits = Scorer(Artifact.open(root / "artifact")), Scorer.logits

    parts: list[int] = []

    def two_bad(self: Scorer, batch):
        found = logits(self, batch).copy()
        parts.append(len(found))
        if len(parts) == 2:
            found[[7, 9]] = np.inf
        return found

    monkeypatch.setattr(Scorer, "logits", two_bad)
    with pytest.raises(UnavailableError, match=r"rows\.parquet: .* for 2 of 500 rows, first for row 507"):
        run_job(scorer.artifact, str(root / "rows.parquet"), root / "out", threads=1)


def test_a_service_says_that_an_artifact_gives_no_finite_scores(store, root):
    with_infinite_weights(root / "artifact")
    store.register("a", str(root / "artifact"), Artifact.open(root / "artifact").fingerprint)
    client = TestClient(create_app(store, Roots([root])), raise_server_exceptions=False)
    status, detail = ask(client, root)
    assert status == 503
    assert "NaN or infinite scores for 3 of 3 rows" in detail
    job = submit(store, root)
    work(store, root)
    assert store.get(job.id).state == "failed"
    assert "NaN or infinite" in store.get(job.id).error


@pytest.mark.parametrize("by", ["removed", "replaced"])
def test_no_job_is_taken_into_a_database_file_that_is_gone(client, store, root, tmp_path, by):
    (tmp_path / "jobs.db").rename(tmp_path / "moved.db")
    if by == "replaced":
        JobStore(f"sqlite:///{tmp_path}/jobs.db")
    answer = client.post("/v1/jobs", json={"input": "rows.parquet", "output": "out"})
    assert answer.status_code == 503
    assert "jobs.db was removed or replaced" in answer.json()["detail"]
    assert client.get("/v1/jobs").status_code == 503
    work(store, root)  # no worker dies of it
    if by == "removed":
        (tmp_path / "moved.db").rename(tmp_path / "jobs.db")
        assert client.post("/v1/jobs", json={"input": "rows.parquet", "output": "out"}).status_code == 201


def test_candidates_with_the_columns_of_the_users_are_refused(root, tmp_path):
    artifact, rows = Artifact.open(root / "artifact"), str(root / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet: users and candidates both have the column"):
        run_job(artifact, rows, tmp_path / "out", JobOptions(candidates=rows))


@pytest.mark.parametrize("options", [JobOptions(), JobOptions(logits=True), "all", "best"])
def test_an_input_without_row_groups_makes_one_empty_part(root, tmp_path, options):
    import pyarrow.parquet as pq

    rows = pl.read_parquet(root / "rows.parquet").head(5)
    if isinstance(options, str):
        rows.select("item", "tags", "price").write_parquet(tmp_path / "candidates.parquet")
        rows = rows.select("user", "device")
        options = JobOptions(candidates=str(tmp_path / "candidates.parquet"), top_k=2 if options == "best" else None)
    pq.ParquetWriter(tmp_path / "empty.parquet", rows.to_arrow(compat_level=pl.CompatLevel.oldest()).schema).close()
    assert pq.read_metadata(tmp_path / "empty.parquet").num_row_groups == 0
    rows.write_parquet(tmp_path / "five.parquet")
    artifact = Artifact.open(root / "artifact")
    result = run_job(artifact, str(tmp_path / "empty.parquet"), tmp_path / "out", options)
    run_job(artifact, str(tmp_path / "five.parquet"), tmp_path / "expected", options)
    empty, expected = (pl.read_parquet(tmp_path / name / "*.parquet") for name in ("out", "expected"))
    assert (result.rows_out, result.parts, len(empty)) == (0, 1, 0)
    assert empty.schema == expected.schema
