"""Runs the service: the HTTP server in this process, workers in separate processes."""

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
import uvicorn

from data_pipelines import extensions
from data_pipelines.errors import UserError
from serving.artifact.device import DeviceName, described, scoring_device
from serving.http.allowed_paths import Roots
from serving.http.auth import is_loopback
from serving.http.connections import BoundedConnection
from serving.http.jobs import JobStore
from serving.http.live import register
from serving.http.service import create_app
from serving.http.worker import EXTENSION, log_to_stderr, stopped_by_signal

_log = logging.getLogger(__name__)
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})
STOP_S = 30
"""Seconds after SIGTERM within which requests must end and workers park their jobs; then they are killed."""


def serve(
    artifacts: Mapping[str, Path],
    data_roots: Sequence[Path],
    jobs_db: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    addresses: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    states: Mapping[str, Path] = MappingProxyType({}),
    device: DeviceName = "cpu",
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        artifacts: Paths by name. The first becomes live unless the database has a live one already.
        jobs_db: URL of the jobs' database.
        workers: Processes that run jobs; 0 if other machines run them.
        addresses: Addresses below which artifacts may read side tables.
        allowed_hosts: Names by which clients may call the service, beside loopback's and ``host``. Where ``host`` is a
            wildcard address and none is given, any name is accepted: tokens are required there.
        states: By the name of an artifact, the state that it reads the past from; its own where absent. A state that is
            updated in place is read again.
        device: Where requests are computed: ``cpu``, ``cuda`` or ``auto``. Jobs are on the CPU of their worker.

    Raises:
        UserError: An artifact, a root or the database cannot be used, there is no GPU, or ``host`` is off loopback and
            no token exists.
    """
    place = described(scoring_device(device))
    faulthandler.enable()  # truncating a mapped file kills the process: print where
    log_to_stderr()
    roots, store = Roots(data_roots, addresses), JobStore(jobs_db)
    if unknown := sorted(states.keys() - artifacts.keys()):
        raise UserError(f"--state names {unknown[0]!r}, and the artifacts are {', '.join(sorted(artifacts))}.")
    for name, path in artifacts.items():
        register(store, roots, name, path, states.get(name))
    exposed = not is_loopback(host)
    if exposed and not store.has_tokens():
        raise UserError(
            f"--host {host} is open to others and no token exists: make one with `recsys token NAME` first."
        )
    torch.set_num_threads(1)  # requests run in parallel
    names = None if host in _WILDCARDS and not allowed_hosts else (host, *allowed_hosts)
    app = create_app(store, roots, tokens_required=exposed, hosts=names, device=device)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=BoundedConnection,
            ws="none",
            proxy_headers=False,
            server_header=False,
            log_level="warning",
            log_config=None,
            timeout_graceful_shutdown=STOP_S // 2,
        )
    )
    # When uvicorn has stopped on a signal it raises that signal again, for the handler that was installed before it.
    with stopped_by_signal(), _workers(workers, jobs_db, roots):
        on = "" if place == "cpu" else f", on {place}"
        print(f"serving on http://{host}:{port}{on}", file=sys.stderr, flush=True)
        server.run()


def _ending(code: int) -> str:
    """How a process ended: the name of the signal that killed it, or its exit code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _workers(count: int, jobs_db: str, roots: Roots) -> Iterator[None]:
    """Keep ``count`` worker processes running; at the end let them park their jobs."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "serving.http.worker",
        "--supervised",
        *(f"{EXTENSION}{name}" for name in extensions.loaded()),
        *map(str, roots.folders),
        *roots.addresses,
    ]
    environment = os.environ | {"RECSYS_JOBS_DB": jobs_db}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)

    running = [start() for _ in range(count)]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            for place, worker in enumerate(running):
                if worker.poll() is not None:
                    _log.warning("a worker ended with %s; starting another", _ending(worker.returncode))
                    running[place] = start()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        for worker in running:
            worker.terminate()
        for worker in running:
            try:
                worker.wait(STOP_S / 2)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
