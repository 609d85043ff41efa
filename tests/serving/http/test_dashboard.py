"""The page in a real browser, over a real server that is stopped by SIGTERM."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def served(exported: Path, tiny_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running service with one worker, a done job and a failed one."""
    folder = tmp_path_factory.mktemp("served")
    root = folder / "root"
    root.mkdir()
    pl.read_parquet(tiny_log).drop("click").write_parquet(root / "rows.parquet")
    pl.read_parquet(tiny_log).drop("item").write_parquet(root / "lacking.parquet")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "recsys", "serve", "--artifact", f"demo={exported}", "--data-root", str(root)]
    command += ["--jobs-db", f"sqlite:///{folder}/jobs.db", "--port", str(port)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            _wait(lambda: httpx.get(f"{address}/readyz").status_code == 200)
            jobs = [
                httpx.post(f"{address}/v1/jobs", json={"input": name, "output": f"out-{name}"}).json()["id"]
                for name in ("rows.parquet", "lacking.parquet")
            ]
            ended = ("done", "failed")
            _wait(lambda: all(httpx.get(f"{address}/v1/jobs/{job}").json()["state"] in ended for job in jobs))
            yield address
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
            assert time.monotonic() - began < 35
        finally:
            process.kill()


def _wait(ready, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if ready():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError


def test_jobs_are_worked_off_by_the_services_own_worker(served):
    states = {job["source"].rsplit("/", 1)[1]: job["state"] for job in httpx.get(f"{served}/v1/jobs").json()}
    assert states == {"rows.parquet": "done", "lacking.parquet": "failed"}


def test_the_page_asks_nobody_else_for_anything(served):
    page = httpx.get(served)
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("index.html", "app.js", "charts.js", "style.css"):
        assert "://" not in httpx.get(f"{served}/static/{name}").text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(served, tmp_path, width):
    assert CHROMIUM is not None
    shot = tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += [
        f"--window-size={width},2000",
        "--virtual-time-budget=6000",
        f"--screenshot={shot}",
        "--dump-dom",
        served,
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    assert "connected" in page
    assert "reads the column 'item', which is not there" in page
    assert "2,000 rows" in page
    assert "demo (live)" in page
    assert "Retry" in page
    assert "score click" in page  # drift of the newest job
    assert shot.stat().st_size > 10_000
