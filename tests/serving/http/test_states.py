"""A service that reads the past of an artifact from a state of its own."""

import shutil
import threading
from pathlib import Path

import polars as pl
import pytest
from fastapi.testclient import TestClient
from past_examples import keyed_config, keyed_log, write_random_artifact

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.past.state import State
from serving.artifact.artifact import Artifact
from serving.batch.score import score
from serving.http import live
from serving.http.allowed_paths import Roots
from serving.http.jobs import JobStore
from serving.http.server import serve
from serving.http.service import create_app
from serving.http.worker import Worker

ROWS = {"rows": [{"u": 1, "t": 10**9 + 100}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with an artifact, its state, and logs of what happened later."""
    folder = tmp_path_factory.mktemp("states").resolve()
    for name, ids in (("first", range(30)), ("second", range(30, 60)), ("third", range(60, 99))):
        keyed_log(list(ids)).write_parquet(folder / f"{name}.parquet")
    pl.DataFrame({"u": [1], "t": [10**9 + 100]}).write_parquet(folder / "rows.parquet")
    dataset = prepare(keyed_config(folder / "first.parquet"), folder / "dataset")
    write_random_artifact(dataset, folder / "artifact")
    other = keyed_config(
        folder / "first.parquet", features={"n": {"kind": "statistic", "measure": "count", "by": ["u"], "window": 9}}
    )
    prepare(other, folder / "other")
    return folder


@pytest.fixture
def state(root: Path, tmp_path: Path) -> Path:
    """A copy of the artifact's past, one log further."""
    folder = root / tmp_path.name
    opened = State.open(root / "dataset" / "state")
    return opened.update(str(root / "second.parquet"), folder, late="refuse").path


def expected(root: Path, state: Path | None, out: Path) -> float:
    score(root / "artifact", str(root / "rows.parquet"), out, state=state)
    return float(pl.read_parquet(out / "*.parquet")["y"][0])


def test_requests_read_the_state_and_its_updates(
    root: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_LOOK_S", 0.0)
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    client = TestClient(create_app(store, Roots([root])))
    listed = client.put("/v1/artifacts/daily", json={"path": str(root / "artifact"), "state": str(state)}).json()
    assert listed["state"] == str(state)
    assert client.put("/v1/artifacts/own", json={"path": str(root / "artifact")}).json()["state"] is None

    def answer(name: str) -> float:
        answered = client.post("/v1/score", json={**ROWS, "artifact": name})
        return float(answered.json()["scores"][0]["y"])

    before = expected(root, state, tmp_path / "before")
    assert answer("daily") == pytest.approx(before, abs=1e-6)
    assert answer("own") == pytest.approx(expected(root, None, tmp_path / "own"), abs=1e-6)
    assert answer("own") != pytest.approx(before, abs=1e-6)
    State.open(state).update(str(root / "third.parquet"), late="refuse")
    after = expected(root, state, tmp_path / "after")
    assert after != pytest.approx(before, abs=1e-6)
    assert answer("daily") == pytest.approx(after, abs=1e-6)


def test_jobs_read_the_state(root: Path, state: Path, tmp_path: Path) -> None:
    store, roots = JobStore(f"sqlite:///{tmp_path}/jobs.db"), Roots([root])
    store.register("daily", str(root / "artifact"), Artifact.open(root / "artifact").fingerprint, state=str(state))
    output = root / f"{tmp_path.name}-scores"
    job, _ = store.submit(artifact="daily", source=str(root / "rows.parquet"), output=str(output), options={})
    Worker(store, roots, tick_s=0.05).run(threading.Event(), until_empty=True)
    done = store.get(job.id)
    assert done is not None
    assert (done.state, done.error) == ("done", None)
    found = float(pl.read_parquet(output / "*.parquet")["y"][0])
    assert found == pytest.approx(expected(root, state, tmp_path / "expected"), abs=1e-6)


def test_other_states_are_refused(root: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(JobStore(f"sqlite:///{tmp_path}/jobs.db"), Roots([root])))
    body = {"path": str(root / "artifact"), "state": str(root / "other" / "state")}
    refused = client.put("/v1/artifacts/a", json=body)
    assert refused.status_code == 422
    assert "does not hold 'n' as" in refused.text
    shutil.copytree(root / "dataset" / "state", tmp_path / "outside")
    outside = client.put("/v1/artifacts/a", json={**body, "state": str(tmp_path / "outside")})
    assert outside.status_code == 422
    assert "not below a data root" in outside.text
    with pytest.raises(UserError, match="--state names 'b', and the artifacts are a"):
        serve({"a": root / "artifact"}, [root], f"sqlite:///{tmp_path}/other.db", states={"b": root / "x"})
