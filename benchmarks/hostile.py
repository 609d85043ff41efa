"""What hostile inputs reach: no file outside, no process killed, no traceback, no memory without bound.

Inputs are made from a seed (``hostile_inputs.py``). Commands run one after the other in a process of their own, which
is started again when one of them kills it; requests go to a service on loopback. A folder outside is compared after
every case, and no answer may hold what its file holds. Memory is the growth of the process over four times the input
plus 64 MB: 1 is the most there should be. ``/healthz`` is requested throughout.
"""

import argparse
import http.client
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from benchmarks import hostile_inputs as inputs
from benchmarks.common import machine, peak_rss_bytes, table
from benchmarks.serve import service
from data_pipelines.dataset.dataset import prepare
from data_pipelines.synthetic import DemoConfig, generate
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run
from recsys.training.train import train

CANARY, LOOT = "canary-5e1f", "loot"
BASELINE = "as it should be"
CASE_S = 60
HALF_SENT = 200


class Results:
    """Outcomes by kind, and the worst of them."""

    def __init__(self, outside: Path) -> None:
        self.outcomes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.memory: dict[str, float] = defaultdict(float)
        self._outside = outside
        outside.mkdir()
        (outside / "canary").write_text(CANARY)

    def add(self, kind: str, outcome: str, *, memory_ratio: float = 0.0, told: str = "") -> None:
        left = {path.name: path.read_text(errors="replace") for path in self._outside.iterdir()}
        if left != {"canary": CANARY} or CANARY in told:
            outcome = "outside"
            for path in self._outside.iterdir():
                path.unlink()
            (self._outside / "canary").write_text(CANARY)
        self.outcomes[kind][outcome] += 1
        if kind != BASELINE:  # which imports everything
            self.memory[kind] = max(self.memory[kind], memory_ratio)

    def count(self, outcome: str | None = None) -> int:
        return sum(n for kind in self.outcomes.values() for name, n in kind.items() if outcome in (None, name))


def _ratio(grown: int, size: int) -> float:
    return grown / (4 * size + (64 << 20))


def carry_out(listed: Path) -> None:
    """Run the commands of a file in this process, and say a line of JSON on each before and after it."""
    from recsys.cli import main as recsys

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in json.loads(listed.read_text()):
        print(json.dumps({"begun": case["kind"]}), flush=True)
        Path("/proc/self/clear_refs").write_text("5")
        before, outcome = peak_rss_bytes(), "done"
        try:
            sys.argv = ["recsys", *case["arguments"]]
            recsys()
        except SystemExit as end:
            outcome = "refused" if end.code == 2 else "traceback" if end.code else "done"
        except BaseException:
            outcome = "traceback"
            traceback.print_exc()
        print(json.dumps({"ended": outcome, "ratio": _ratio(peak_rss_bytes() - before, case["bytes"])}), flush=True)


def commands(cases: Sequence[inputs.Command], folder: Path, results: Results, errors: Path) -> None:
    """Run commands in child processes; what kills one is counted, and the next child continues after it."""
    left = [asdict(case) for case in cases]
    while left:
        listed = folder / "cases.json"
        listed.write_text(json.dumps(left))
        child = [sys.executable, "-m", "benchmarks.hostile", "--carry-out", str(listed)]
        with (
            errors.open("ab") as log,
            subprocess.Popen(child, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            assert process.stdout is not None
            killer: threading.Timer | None = None
            for line in process.stdout:
                if not line.startswith('{"'):
                    continue
                said = json.loads(line)
                if killer is not None:
                    killer.cancel()
                if "begun" in said:
                    killer = threading.Timer(CASE_S, process.kill)
                    killer.start()
                elif "ended" in said:
                    results.add(left.pop(0)["kind"], said["ended"], memory_ratio=said["ratio"])
            if killer is not None:
                killer.cancel()
        if left:
            results.add(left.pop(0)["kind"], "killed")


class Health(threading.Thread):
    """Asks ``/healthz`` all the while; the longest it took, in milliseconds."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._stop_asked = port, threading.Event()
        self.worst_ms = 0.0

    def run(self) -> None:
        while not self._stop_asked.wait(0.05):
            began = time.perf_counter()
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                connection.request("GET", "/healthz")
                connection.getresponse().read()
                connection.close()
            self.worst_ms = max(self.worst_ms, (time.perf_counter() - began) * 1e3)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def answered(port: int, case: inputs.Sent) -> tuple[str, str]:
    """What the service did with a request: an outcome, and what it answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CASE_S)
    try:
        connection.putrequest(case.method, case.path, skip_host="host" in case.headers)
        for name, value in {**case.headers, "content-length": str(len(case.body))}.items():
            connection.putheader(name, value)
        connection.endheaders(case.body)
        answer = connection.getresponse()
        told = answer.read().decode(errors="replace") + str(answer.getheader("location"))
        if answer.status == 500 or "Traceback" in told:
            return "traceback", told
        if case.status not in (None, answer.status):
            return "let through", told
        return ("done" if answer.status < 300 else "refused"), told
    except (OSError, http.client.HTTPException, ValueError):
        return "cut off", ""
    finally:
        connection.close()


def asked(port: int, process: psutil.Process, cases: Sequence[inputs.Sent], results: Results) -> float:
    """Send requests; the longest that ``/healthz`` took, in milliseconds."""
    health = Health(port)
    health.start()
    half = [socket.create_connection(("127.0.0.1", port)) for _ in range(HALF_SENT)]
    for number, connection in enumerate(half):
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\n"[: 10 + number % 30])
    for case in cases:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        before = peak_rss_bytes(process.pid)
        outcome, told = answered(port, case)
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            results.add(case.kind, "killed")
            break
        grown = peak_rss_bytes(process.pid) - before
        results.add(case.kind, outcome, memory_ratio=_ratio(grown, len(case.body)), told=told)
    time.sleep(11)
    for connection in half:
        connection.setblocking(False)
        try:
            closed = connection.recv(1) == b""
        except BlockingIOError:
            closed = False
        except OSError:
            closed = True
        results.add("half-sent heads", "refused" if closed else "left open")
        connection.close()
    health.stop()
    return health.worst_ms


def prepared(folder: Path) -> tuple[Path, Path, Path]:
    """Rows to score, an artifact, and the same packed."""
    generate(DemoConfig(rows=4000), folder / "log.parquet")
    features = {"user": {"kind": "id", "column": "user_id"}, "item": {"kind": "id", "column": "item_id"}}
    config = ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(folder / "log.parquet"),
                "time": "timestamp",
                "tasks": {"click": {"column": "clicked"}},
                "keys": ["user_id", "item_id"],
                "features": features | {"tags": {"kind": "bag"}, "price": {"kind": "number"}},
            },
            "model": {"dim": 8, "tower": {"kind": "mlp"}},
            "train": {"epochs": 1, "batch_size": 1024},
        }
    )
    train(config, prepare(config.data, folder / "dataset"), folder / "run")
    export_run(folder / "run", folder / "artifact")
    export_run(folder / "run", folder / "packed", ["export.packed=true"])
    (folder / "root").mkdir()
    rows = folder / "root" / "rows.parquet"
    pl.read_parquet(folder / "log.parquet").drop("clicked").write_parquet(rows)
    return rows, folder / "artifact", folder / "packed"


@contextmanager
def store(folder: Path) -> Iterator[str]:
    """Address of a store on loopback that has the files of ``folder``."""
    folder.mkdir()
    (folder / LOOT).write_text("loot")
    handler: Callable[..., Any] = partial(_Store, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def _commands(
    folder: Path, rows: Path, artifact: Path, packed: Path, address: str, rng: random.Random
) -> Iterator[inputs.Command]:
    yield inputs.Command(BASELINE, ["score", str(artifact), str(rows), str(folder / "scores")], 0)
    yield from inputs.artifacts(artifact, rows, folder / "made", folder / "outside", address, rng)
    yield from inputs.archives(packed, rows, folder / "archives")
    yield from inputs.files_of_rows(artifact, rows, folder / "files", rng)
    yield from inputs.configs(folder / "configs")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("all", "commands", "requests"), default="all")
    parser.add_argument("--carry-out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--errors", type=Path, help="Keep what the commands and the service wrote to standard error.")
    chosen = parser.parse_args()
    if chosen.carry_out:
        return carry_out(chosen.carry_out)
    print(machine(), f"seed {chosen.seed}", sep="; ", flush=True)
    rng = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results, errors = Results(folder / "outside"), chosen.errors or folder / "errors.txt"
        errors.touch()
        rows, artifact, packed = prepared(folder)
        (folder / "root" / "link").symlink_to(folder / "outside")
        healthz_ms = 0.0
        if chosen.part != "requests":
            with store(folder / "made") as address:
                commands(list(_commands(folder, rows, artifact, packed, address, rng)), folder, results, errors)
        if chosen.part != "commands":
            sent = list(inputs.requests(pl.read_parquet(rows).head(50), folder / "outside", rng))
            with errors.open("ab") as log, service(artifact, folder / "root", log) as (port, process):
                healthz_ms = asked(port, process, sent, results)
        tracebacks = max(results.count("traceback"), errors.read_text(errors="replace").count("Traceback (most recent"))
    outcomes = sorted({outcome for kind in results.outcomes.values() for outcome in kind})
    lines = [
        (kind, *(str(found.get(o, 0)) for o in outcomes), f"{results.memory[kind]:.2f}")
        for kind, found in results.outcomes.items()
    ]
    print(table(("kind", *outcomes, "memory"), lines))
    told = {"cases": results.count(), "outside": results.count("outside"), "killed": results.count("killed")}
    told |= {
        "tracebacks": tracebacks,
        "let_through": results.count("let through"),
        "left_open": results.count("left open"),
    }
    worst = {"worst_memory_ratio": round(max(results.memory.values()), 2), "worst_healthz_ms": round(healthz_ms, 1)}
    print(json.dumps(told | worst))


class _Store(SimpleHTTPRequestHandler):
    """A store of files that says nothing, and has a file of every name that it is asked for."""

    def translate_path(self, path: str) -> str:
        found = super().translate_path(path)
        return found if os.path.exists(found) else str(Path(self.directory) / LOOT)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    main()
