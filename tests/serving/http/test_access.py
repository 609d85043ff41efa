"""What a service reads lies below its data roots: side tables of artifacts, inputs, whatever a glob or a link says."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from data_pipelines.disk.storage import seal
from data_pipelines.errors import UserError
from recsys.cli import app
from serving.http.allowed_paths import Roots
from serving.http.jobs import JobStore
from serving.http.worker import Worker

PASSWD = {"kind": "csv", "delimiter": ":", "header": False, "columns": ["user", "secret", "id", "group"]}
Forge = Callable[..., Path]


@pytest.fixture
def root(tiny_log: Path, tmp_path: Path) -> Path:
    """A data root with rows and a side table; beside it, a file that nobody may see."""
    root = tmp_path / "root"
    root.mkdir()
    pl.read_parquet(tiny_log).drop("click", "rating").write_parquet(root / "rows.parquet")
    (root / "items.csv").write_text("user:shown:1:1\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "shadow.csv").write_text("user:hush:1:1\n")
    return root


@pytest.fixture
def forge(exported: Path, root: Path) -> Forge:
    """Makes an artifact whose users are joined with a side table, and whose scores show a field of it."""

    def make(table: object, name: str = "forged", format: dict[str, Any] | None = None) -> Path:
        folder = root / name
        shutil.copytree(exported, folder)
        content = json.loads((folder / "encoder.json").read_text())
        content["config"]["joins"] = [{"table": str(table), "on": "user", "format": format or PASSWD}]
        content["config"]["keys"] += ["secret"]
        (folder / "encoder.json").write_text(json.dumps(content))
        seal(folder, "artifact", {})
        return folder

    return make


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on loopback, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def rows(root: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(root / "rows.parquet").head(3).to_dicts()


def run(client: TestClient, store: JobStore, root: Path, **body: str) -> dict[str, Any]:
    job = client.post("/v1/jobs", json={"output": "out", **body}).json()
    Worker(store, Roots([root]), tick_s=0.05).run(threading.Event(), until_empty=True)
    found: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").json()
    return found


def test_a_side_table_outside_is_refused_at_registration_and_at_every_use(client, store, root, forge):
    outside = root.parent / "outside"
    (root / "link").symlink_to(outside)
    tables = ["/etc/passwd", "/etc/nothing-there", outside / "shadow.csv", root / "link" / "shadow.csv", "${HOME}/x"]
    tables += [
        root / ".." / "outside" / "shadow.csv",
        f"{root}/*/../../outside/*.csv",
        "file:///etc/passwd",
        "/dev/zero",
    ]
    for number, table in enumerate(tables):
        folder = forge(table, f"forged{number}")
        answer = client.put("/v1/artifacts/forged", json={"path": folder.name})
        assert answer.status_code == 422
        assert f"reads the side table {table}, which is not there, or not below a data root" in answer.json()["detail"]
        assert "--data-root" in answer.json()["detail"]
        store.register("forged", str(folder), f"{number}")  # as if it had been let in
        answer = client.post("/v1/score", json={"rows": rows(root), "artifact": "forged"})
        assert answer.status_code == 422
        assert "hush" not in answer.text
        assert "root:x" not in answer.text
        job = run(client, store, root, input="rows.parquet", artifact="forged")
        assert (job["state"], "reads the side table" in job["error"]) == ("failed", True)


def test_a_side_table_at_an_address_makes_no_request(client, store, root, forge, listener):
    address, asked = listener
    folder = forge(f"{address}/inside/items.csv?a=b")
    assert "--allow-address" in client.put("/v1/artifacts/forged", json={"path": "forged"}).json()["detail"]
    store.register("forged", str(folder), "0")
    assert client.post("/v1/score", json={"rows": rows(root), "artifact": "forged"}).status_code == 422
    assert run(client, store, root, input="rows.parquet", artifact="forged")["state"] == "failed"
    assert asked == []


def test_addresses_are_read_where_they_are_allowed(listener):
    address, _ = listener
    roots = Roots([Path.cwd()], [f"{address}/inside"])
    assert roots.find(f"{address}/inside/items.csv") == [f"{address}/inside/items.csv"]
    port = int(address.rpartition(":")[2])
    for other in ("/inside-too/x", "/inside/../x", "/inside/%2e%2e/x", "/", "", f"@127.0.0.1:{port}/inside/x"):
        with pytest.raises(UserError, match="not below a data root"):
            roots.find(address + other)
    for bad in ("http://me:hush@host", "nothing", "file:///etc", "s3://bucket/../x"):
        with pytest.raises(UserError, match="--allow-address"):
            Roots([Path.cwd()], [bad])


def test_a_side_table_below_a_root_is_joined_until_it_becomes_a_link_out(client, store, root, forge):
    frame = pl.read_parquet(root / "rows.parquet")
    users = frame.select("user").unique().with_columns(secret=pl.lit("shown"))
    users.write_parquet(root / "users.parquet")
    users.with_columns(secret=pl.lit("hush")).write_parquet(root.parent / "outside" / "users.parquet")
    forge(root / "users.parquet", format={"kind": "parquet"})
    assert client.put("/v1/artifacts/forged", json={"path": "forged"}).status_code == 200
    lacking = [{name: value for name, value in row.items() if name != "device"} for row in rows(root)]
    answer = client.post("/v1/score", json={"rows": lacking, "artifact": "forged"})
    assert "hush" not in answer.text
    os.remove(root / "users.parquet")
    (root / "users.parquet").symlink_to(root.parent / "outside" / "users.parquet")
    answer = client.post("/v1/score", json={"rows": lacking, "artifact": "forged"})
    assert (answer.status_code, "below a data root" in answer.text) == (422, True)


def test_a_delta_table_whose_log_names_a_file_outside_is_refused(root):
    table = root / "delta"
    write_deltalake(str(table), pl.DataFrame({"user": [1]}).to_arrow())
    roots = Roots([root])
    assert len(roots.find(str(table))) >= 1
    pl.DataFrame({"user": [1]}).write_parquet(root.parent / "outside" / "x.parquet")
    log = next((table / "_delta_log").glob("*.json"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            line["add"]["path"] = f"file://{root.parent}/outside/x.parquet"
    log.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="not below a data root"):
        roots.find(str(table))


@pytest.mark.parametrize("glob", ["*/../../outside/shado*", "*/../../outside/nothing*", "**/../../../etc/shado*"])
def test_dots_after_a_wildcard_are_refused_when_a_job_is_submitted(client, glob):
    for body in ({"input": glob}, {"input": "rows.parquet", "options": {"candidates": glob}}):
        answer = client.post("/v1/jobs", json={"output": "out", **body})
        assert answer.status_code == 422
        assert (
            answer.json()["detail"]
            == f"{glob!r} has `..` after a wildcard: name a folder below a data root without it."
        )


def test_what_is_outside_and_what_is_not_there_get_the_same_answer(client, store, root):
    (root / "in").mkdir()
    (root / "in" / "there.csv").symlink_to(root.parent / "outside" / "shadow.csv")
    (root / "in" / "not.csv").symlink_to(root.parent / "outside" / "nothing.csv")
    (root / "links").symlink_to(root.parent / "outside")
    errors = set()
    for source in (
        "in/ther*",
        "in/no*",
        "in/other*",
        "in",
        "link*/shado*",
        "link*/nothing*",
        "absent.csv",
        "absent/*.csv",
    ):
        error = run(client, store, root, input=source, output=f"out-{len(source)}")["error"]
        errors.add(error.replace(repr(str(root / source)), "X"))
    assert errors == {"X is not there, or not below a data root."}
    for path in ("../outside/shadow.csv", "../outside/nothing.csv", "links/shadow.csv", "links/nothing.csv"):
        answer = client.post("/v1/jobs", json={"input": path, "output": "out"}).json()
        assert answer["detail"] == f"{path!r} is not there, or not below a data root."


def test_outputs_have_no_wildcards(client):
    assert "wildcard" in client.post("/v1/jobs", json={"input": "rows.parquet", "output": "ou*"}).json()["detail"]


def test_a_database_is_for_its_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        JobStore(f"sqlite:///{tmp_path}/jobs.db").new_token("me")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("jobs.db*")}
    assert set(modes.values()) == {0o600}, modes


def test_the_command_says_what_an_artifact_reads_before_it_does(root, forge, tmp_path):
    folder = forge("/etc/passwd")
    shown = CliRunner().invoke(app, ["inspect", str(folder), "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout.splitlines()[-1])["side_tables"] == ["/etc/passwd"]
    scored = CliRunner().invoke(app, ["score", str(folder), str(root / "rows.parquet"), str(tmp_path / "out")])
    assert f"{folder} reads the side tables '/etc/passwd'" in scored.stderr
