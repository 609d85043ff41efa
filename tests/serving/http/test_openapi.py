"""Whatever the description of the API allows, and much that it does not: never a server error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from serving.artifact.artifact import Artifact
from serving.http.allowed_paths import Roots
from serving.http.jobs import JobStore
from serving.http.service import create_app


@pytest.fixture(scope="module")
def api(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    store = JobStore(f"sqlite:///{folder}/jobs.db")
    store.register("demo", str(exported), Artifact.open(exported).fingerprint)
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(store, Roots([folder])))


def test_no_request_breaks_the_service(api):
    for operation in api.get_all_operations():
        requests = operation.ok().as_strategy()

        @settings(
            max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(case=requests)
        def check(case):
            assert case.call().status_code < 500

        check()
