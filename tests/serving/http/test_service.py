"""The service as its clients and its attackers meet it."""

import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from data_pipelines.errors import UserError
from data_pipelines.features.encoder import Encoder
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer
from serving.http.allowed_paths import Roots
from serving.http.jobs import JobStore
from serving.http.live import LiveArtifacts
from serving.http.service import ARROW, Limits, create_app
from serving.http.worker import Worker


@pytest.fixture
def root(exported: Path, tiny_log: Path, tmp_path: Path) -> Path:
    """A data root with the log in it."""
    root = tmp_path / "root"
    root.mkdir()
    pl.read_parquet(tiny_log).drop("click", "rating").write_parquet(root / "rows.parquet", row_group_size=100)
    return root


@pytest.fixture
def rows(root: Path) -> pl.DataFrame:
    return pl.read_parquet(root / "rows.parquet").head(20)


def arrow(frame: pl.DataFrame) -> bytes:
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def work(store: JobStore, root: Path) -> None:
    Worker(store, Roots([root]), tick_s=0.05).run(threading.Event(), until_empty=True)


def test_json_and_arrow_requests_score_as_the_scorer_does(client, rows, exported):
    expected = Scorer(Artifact.open(exported)).score(rows, logits=True)
    answer = client.post("/v1/score", json={"rows": rows.to_dicts(), "logits": True}).json()
    assert answer["artifact"] == "first"
    np.testing.assert_allclose([row["click"] for row in answer["scores"]], expected["click"], rtol=1e-5)
    assert [row["item"] for row in answer["scores"]] == expected["item"].to_list()
    stream = client.post("/v1/score?logits=true", content=arrow(rows), headers={"content-type": ARROW})
    assert stream.headers["content-type"] == ARROW
    assert pl.from_arrow(pa.ipc.open_stream(stream.content).read_all()).equals(expected)


def test_a_job_from_submission_to_scores(client, store, root):
    job = client.post("/v1/jobs", json={"input": "rows.parquet", "output": "out"})
    assert (job.status_code, job.json()["state"]) == (201, "queued")
    work(store, root)
    done = client.get(f"/v1/jobs/{job.json()['id']}").json()
    assert (done["state"], done["rows_done"], done["rows_total"], done["error"]) == ("done", 2000, 2000, None)
    assert len(pl.read_parquet(root / "out" / "part-*.parquet")) == 2000
    assert done["drift"]["features"]["item"] < 0.5
    assert [j["id"] for j in client.get("/v1/jobs?state=done").json()] == [done["id"]]
    assert client.get("/v1/jobs/counts").json() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 0}


def test_a_failed_job_says_why_and_can_be_retried(client, store, root):
    pl.read_parquet(root / "rows.parquet").drop("item").write_parquet(root / "lacking.parquet")
    job = client.post("/v1/jobs", json={"input": "lacking.parquet", "output": "out"}).json()
    work(store, root)
    failed = client.get(f"/v1/jobs/{job['id']}").json()
    assert failed["state"] == "failed"
    assert "'item', which is not there" in failed["error"]
    os.replace(root / "rows.parquet", root / "lacking.parquet")
    assert client.post(f"/v1/jobs/{job['id']}/retry").json()["state"] == "queued"
    work(store, root)
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done"


def test_an_idempotency_key_makes_one_job(client):
    body, key = {"input": "rows.parquet", "output": "out"}, {"idempotency-key": "monday"}
    first, again = client.post("/v1/jobs", json=body, headers=key), client.post("/v1/jobs", json=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/v1/jobs", json=body | {"output": "elsewhere"}, headers=key)
    assert other.status_code == 409


def test_concurrent_cancels_agree(client):
    job = client.post("/v1/jobs", json={"input": "rows.parquet", "output": "out"}).json()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post(f"/v1/jobs/{job['id']}/cancel").status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "link/secret", "a/../../secret", "s3://x/y", "file:///x", "\0"]
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_paths_outside_the_roots_are_refused(client, root, side, path):
    (root.parent / "secret").mkdir()
    (root / "link").symlink_to(root.parent)
    body = {"input": "rows.parquet", "output": "out"} | {side: path}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert "below a data root" in answer.json()["detail"]


def test_a_glob_that_meets_a_symlink_out_is_refused(client, store, root):
    os.replace(root / "rows.parquet", root.parent / "outside.parquet")
    (root / "in").mkdir()
    (root / "in" / "rows.parquet").symlink_to(root.parent / "outside.parquet")
    job = client.post("/v1/jobs", json={"input": "in/*.parquet", "output": "out"}).json()
    work(store, root)
    assert "not below a data root" in client.get(f"/v1/jobs/{job['id']}").json()["error"]


def test_tokens_are_asked_for_once_there_is_one(client, store, root, rows):
    assert client.get("/v1/jobs").status_code == 200
    token = store.new_token("me")
    assert client.get("/v1/jobs").status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/v1/jobs", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/jobs", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert client.get("/healthz").status_code == 200
    strict = TestClient(create_app(JobStore(f"sqlite:///{root}/other.db"), Roots([root]), tokens_required=True))
    assert strict.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b'{"rows": [1]}', "application/json", 422),
        (b'{"rows": [{"user": 1}, {"user": [1]}]}', "application/json", 422),
        (b'{"rows": [{"user": 1}]}', "application/json", 422),
        (b'{"rows": [], "artifact": "none"}', "application/json", 409),
        (b"ARROW1 no", ARROW, 400),
        (b"", ARROW, 400),
    ],
)
def test_bodies_that_cannot_be_read_are_refused_with_one_sentence(client, content, kind, status):
    answer = client.post("/v1/score", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert isinstance(answer.json()["detail"], str)


def test_damaged_arrow_never_breaks_the_service(client, rows):
    whole, rng = arrow(rows), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole[: rng.integers(1, len(whole))])
        for at in rng.integers(0, len(damaged), 5):
            damaged[at] ^= 1 << rng.integers(0, 8)
        assert client.post("/v1/score", content=bytes(damaged), headers={"content-type": ARROW}).status_code < 500


def test_limits_on_body_and_rows(store, root, rows):
    client = TestClient(create_app(store, Roots([root]), limits=Limits(body_bytes=50_000, rows=10)))
    many = client.post("/v1/score", json={"rows": rows.to_dicts()})
    assert (many.status_code, "submit a job" in many.json()["detail"]) == (413, True)
    large = {"content": b"x" * 60_000, "headers": {"content-type": ARROW}}
    assert client.post("/v1/score", **large).status_code == 413
    chunked = client.post("/v1/score", content=iter([b"x" * 30_000] * 3), headers={"content-type": ARROW})
    assert chunked.status_code == 413


def test_an_unexpected_error_shows_no_traceback(client, monkeypatch, rows):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Scorer, "score", fail)
    answer = client.post("/v1/score", json={"rows": rows.to_dicts()})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_switching_the_live_artifact(client, store, root, exported, trained, rows):
    from recsys.exporting.export import export_run

    export_run(trained[1], root / "second", ["sparsity.quantization.table_bits=8"])
    assert client.put("/v1/artifacts/second", json={"path": "second"}).json()["live"] is False
    queued = client.post("/v1/jobs", json={"input": "rows.parquet", "output": "out"}).json()
    assert client.post("/v1/artifacts/second/live").status_code == 204
    assert client.post("/v1/score", json={"rows": rows.to_dicts()}).json()["artifact"] == "second"
    assert client.post("/v1/score", json={"rows": rows.to_dicts(), "artifact": "first"}).json()["artifact"] == "first"
    assert client.get(f"/v1/jobs/{queued['id']}").json()["artifact"] == "first"
    assert client.post("/v1/artifacts/none/live").status_code == 409
    assert client.put("/v1/artifacts/third", json={"path": "../elsewhere"}).status_code == 422


def test_a_switch_makes_no_request_wait(store, exported, monkeypatch):
    artifacts = LiveArtifacts(store, Roots([exported.parent]))
    assert artifacts.get().name == "first"
    store.register("second", str(exported), Artifact.open(exported).fingerprint)
    store.make_live("second")
    may_load, warm = threading.Event(), Encoder.warm

    def slow(encoder: Encoder) -> None:
        assert may_load.wait(60)
        warm(encoder)

    monkeypatch.setattr(Encoder, "warm", slow)
    artifacts.forget()
    assert artifacts.get().name == "first"
    assert artifacts.name() == "second"
    may_load.set()
    assert artifacts.get("second").name == "second"
    assert artifacts.get().name == "second"
    assert [live.name for live in artifacts.loaded()] == ["first", "second"]


def test_card_drift_metrics_and_health(client, rows):
    client.post("/v1/score", json={"rows": rows.to_dicts()})
    card = client.get("/v1/artifacts/first/card").json()
    assert card["bytes"] == sum(card["files"].values())
    assert set(card["metrics"]) == {"valid", "test"}
    assert set(client.get("/v1/artifacts/first/drift").json()["oov"]) == {"user", "item", "device", "tags"}
    metrics = client.get("/metrics").text
    assert 'recsys_rows_scored_total{artifact="first"} 20.0' in metrics
    assert 'recsys_request_seconds_count{method="POST",route="/v1/score",status="200"} 1.0' in metrics
    assert 'recsys_jobs{state="queued"} 0.0' in metrics
    assert 'recsys_oov_rate{artifact="first",feature="item"}' in metrics
    assert client.get("/readyz").json() == {"status": "ready", "artifact": "first"}


def test_not_ready_without_an_artifact(tmp_path):
    client = TestClient(create_app(JobStore(f"sqlite:///{tmp_path}/empty.db"), Roots([tmp_path])))
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_a_worker_told_to_stop_parks_its_job_and_the_next_one_resumes_it(store, root, monkeypatch):
    from serving.batch import inputs

    monkeypatch.setattr(inputs, "PART_ROWS", 100)
    job, _ = store.submit(artifact="first", source=str(root / "rows.parquet"), output=str(root / "out"), options={})
    stop = threading.Event()
    score = Scorer.score

    def slowly(*arguments: object, **options: object) -> pl.DataFrame:
        time.sleep(0.1)
        stop.set()
        return score(*arguments, **options)

    monkeypatch.setattr(Scorer, "score", slowly)
    Worker(store, Roots([root]), threads=1, tick_s=0.05).run(stop)
    assert store.get(job.id).state == "queued"
    assert not (root / "out").exists()
    monkeypatch.setattr(Scorer, "score", score)
    work(store, root)
    assert store.get(job.id).state == "done"


def test_a_root_must_be_there(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        Roots([tmp_path / "none"])


def test_the_openapi_description_is_whole(client):
    description = client.get("/openapi.json").json()
    assert {"/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/cancel", "/v1/jobs/{job}/retry", "/v1/score"} <= set(
        description["paths"]
    )
    assert json.dumps(description).count("$defs") == 0
