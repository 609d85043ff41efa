"""Requests of other sites, of clients without a token, and of clients that stop half-way."""

import http.client
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from serving.http import connections
from serving.http.allowed_paths import Roots
from serving.http.connections import BoundedConnection
from serving.http.jobs import JobStore
from serving.http.request_rows import Limits
from serving.http.service import ARROW, create_app


@pytest.fixture
def client(store: JobStore, tmp_path: Path) -> TestClient:
    app = create_app(store, Roots([tmp_path]), hosts=["127.0.0.1", "scores.example"])
    return TestClient(app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False)


@pytest.fixture
def port(store: JobStore, tmp_path: Path) -> Iterator[int]:
    """A server on loopback in a thread, with the connections of the real one."""
    app = create_app(store, Roots([tmp_path]), hosts=[], limits=Limits(seconds=0.5))
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=BoundedConnection, ws="none", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/healthz")
    return connection.getresponse().status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("localhost:1", 200),
        ("[::1]:8080", 200),
        ("scores.example", 200),
        ("Scores.Example.:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example#127.0.0.1", 421),
        ("[evil]", 421),
        ("", 421),
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/jobs", "/none"])
def test_only_names_of_the_service_are_answered(client, host, status, path):
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == (404 if status == 200 and path == "/none" else status)


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"origin": "http://127.0.0.1:8080"}, False),
        ({"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}, False),
        ({"origin": "https://scores.example"}, False),
        ({"origin": "http://evil.example"}, True),
        ({"origin": "http://127.0.0.1:3000"}, True),
        ({"origin": "http://localhost:8080"}, True),
        ({"origin": "http://127.0.0.1"}, True),
        ({"origin": "https://scores.example:3000"}, True),
        ({"origin": "null"}, True),
        ({"origin": "http://[::1"}, True),
        ({"origin": ""}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8080"}, True),
    ],
)
def test_pages_of_other_sites_change_and_score_nothing(client, store, headers, refused):
    before = store.artifacts()
    for method, path in (
        ("POST", "/v1/artifacts/first/live"),
        ("PUT", "/v1/artifacts/second"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/score"),
    ):
        answer = client.request(method, path, headers=headers, content=b"{}")
        assert (answer.status_code == 403) == refused
    assert store.artifacts() == before
    assert client.get("/healthz", headers=headers).status_code == 200


def test_without_a_token_no_body_is_read(client, store):
    store.new_token("me")
    sent: list[int] = []

    def body() -> Iterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield b"x" * 1000

    answer = client.post("/v1/score", content=body(), headers={"content-type": ARROW})
    assert answer.status_code == 401
    assert client.post("/v1/nothing").status_code == 401
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/static/app.js"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "identity, gzip"])
def test_compressed_bodies_are_refused(client, coding):
    answer = client.post("/v1/score", content=b"x", headers={"content-encoding": coding})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/jobs", '{"input": NaN, "output": "o"}', "body.input"),
        ("/v1/jobs", '{"input": "i", "output": "o", "options": {"top_k": NaN}}', "body.options.top_k"),
        ("/v1/jobs", '{"input": "i", "output": "o", "options": {"top_k": 1e999}}', "body.options.top_k"),
        ("/v1/jobs", r'{"input": "\ud800", "output": "o"}', "body.input"),
        ("/v1/jobs", r'{"input": "i", "output": "o", "\ud800": 1}', "body"),
        ("/v1/jobs", '{"input": "i", "output": "o", "options": 1e999}', "body.options"),
        ("/v1/score", '{"rows": NaN}', "rows"),
        ("/v1/score", '{"rows": [], "artifact": 1e999}', "artifact"),
        ("/v1/score", r'{"rows": [{"a": "\ud800"}]}', "the body"),
        ("/v1/score", '{"rows": [{"user": NaN}]}', "'user'"),
        ("/v1/score", '{"rows": [{"user": 1e999}]}', "'user'"),
    ],
)
def test_what_is_no_json_value_is_refused_with_its_field(client, path, body, where):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert where in answer.json()["detail"]


def test_deep_and_large_small_bodies_are_refused(client):
    deep = client.post("/v1/jobs", content="[" * 60_000, headers={"content-type": "application/json"})
    assert deep.status_code in (400, 422)
    assert client.post("/v1/jobs", content=b" " * 70_000).status_code == 413


def test_metric_labels_come_from_fixed_lists(client):
    for number in range(20):
        client.request(f"M{number}", f"/nowhere/{number}")
        client.request("GET", f"/v1/jobs/{number:032x}")
    lines = [line for line in client.get("/metrics").text.splitlines() if "request_seconds_count" in line]
    assert len(lines) == 2
    assert 'method="other",route="other"' in "".join(lines)


@pytest.mark.parametrize("path", ["/v1/jobs/", "/healthz/", "/static", "/docs/"])
def test_nothing_is_redirected(client, path):
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_the_description_loads_from_the_service_alone(client):
    page = client.get("/docs").text
    assert '<script src="static/docs.js"' in page
    assert "://" not in page + client.get("/static/docs.js").text


@pytest.mark.parametrize("name", ["../service.py", "..%2fservice.py", "%2e%2e/service.py", "none.js", "index.html%00"])
def test_static_files_are_those_of_the_page(client, name):
    assert client.get(f"/static/{name}").status_code == 404


def test_reads_do_not_wait_while_another_process_writes(store, tmp_path):
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        client = TestClient(create_app(store, Roots([tmp_path])))
        for path in ("/healthz", "/", "/static/app.js", "/v1/jobs", "/v1/jobs/counts", "/v1/artifacts", "/readyz"):
            assert client.get(path).status_code == 200
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_a_database_that_is_gone_is_said_with_503(store, tmp_path, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def fail(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("no"))

    client = TestClient(create_app(store, Roots([tmp_path])), raise_server_exceptions=False)
    monkeypatch.setattr(store, "counts", fail)
    assert client.get("/v1/jobs/counts").status_code == 503
    monkeypatch.setattr(store, "has_tokens", fail)
    assert client.get("/v1/jobs").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_half_sent_heads_are_closed_and_keep_nobody_out(port, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 8)
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    half = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    for connection in half:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert healthy(port)
    for connection in half:
        connection.settimeout(20)
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        connection.close()


def test_half_sent_bodies_are_answered_and_closed(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert healthy(port)


def test_the_command_accepts_only_names_it_was_given(exported, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "recsys", "serve", "--artifact", f"demo={exported}", "--data-root", str(tmp_path)]
    command += ["--jobs-db", f"sqlite:///{tmp_path}/jobs.db", "--port", str(port), "--workers", "0"]
    command += ["--allow-host", "scores.example"]

    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/healthz", headers={"host": host})
        return connection.getresponse().status

    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            until = time.monotonic() + 600
            while time.monotonic() < until:
                try:
                    healthy(port)
                    break
                except OSError:
                    time.sleep(0.1)
            answered = {host: status(host) for host in ("localhost", "scores.example", "evil.example")}
        finally:
            process.terminate()
    assert answered == {"localhost": 200, "scores.example": 200, "evil.example": 421}
