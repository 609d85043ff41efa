"""A store of jobs with one artifact, and a client of its service."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.artifact.artifact import Artifact
from serving.http.allowed_paths import Roots
from serving.http.jobs import JobStore
from serving.http.service import create_app


@pytest.fixture
def store(exported: Path, tmp_path: Path) -> JobStore:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    store.register("first", str(exported), Artifact.open(exported).fingerprint)
    return store


@pytest.fixture
def client(store: JobStore, root: Path) -> TestClient:
    """A client of the service, whose data root is the fixture ``root`` of the module."""
    return TestClient(create_app(store, Roots([root])), raise_server_exceptions=False)
