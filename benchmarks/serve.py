"""How the service answers small requests, and how soon a large artifact is open.

A service on loopback, in a process of its own, is sent requests of 100 rows as JSON by eight connections at once: the
model and the log are those of the scoring benchmark. Client and service share the machine. Memory is the service's,
after a first thousand requests and after all others.

The large artifact has one table of a gigabyte with a vocabulary of four million values. Opening it maps it; comparing
all checksums, as is done where an artifact comes in, reads it. Its pages are in the system's cache. Warming builds the
index of its vocabulary, which is otherwise done by the first score; a service warms an artifact before it answers.
"""

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import psutil
import torch

from benchmarks.common import machine, table
from benchmarks.prepare import write_log
from benchmarks.score import write_artifacts
from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.kinds.base import Fitted
from data_pipelines.features.plan import Plan
from data_pipelines.features.vocabulary import Vocabulary
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.weights import Weights
from serving.artifact.artifact import Artifact, write_artifact
from serving.artifact.card import ModelCard
from serving.batch.scorer import Scorer

CONNECTIONS, ROWS, WARM = 8, 100, 1000
_VALUES, _DIM = 4_200_000, 64
_HEADERS = {"content-type": "application/json"}
Service = tuple[int, psutil.Process]


@contextmanager
def service(artifact: Path, folder: Path, errors: int | IO[bytes] = subprocess.DEVNULL) -> Iterator[Service]:
    """A running service without workers: its port and its process. ``errors`` takes its standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "recsys", "serve", "--artifact", f"bench={artifact}", "--data-root", str(folder)]
    command += ["--jobs-db", f"sqlite:///{folder}/jobs.db", "--port", str(port), "--workers", "0"]
    with subprocess.Popen(command, stderr=errors) as process:
        try:
            while not _ready(port):
                assert process.poll() is None, "the service ended"
                time.sleep(0.1)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def load(port: int, bodies: list[bytes], requests: int) -> tuple[list[float], int]:
    """Seconds of each of ``requests`` over all connections, and how many were not answered by scores."""

    def connection(number: int) -> tuple[list[float], int]:
        seconds, errors = [], 0
        client = http.client.HTTPConnection("127.0.0.1", port)
        for request in range(number, requests, CONNECTIONS):
            began = time.perf_counter()
            client.request("POST", "/v1/score", bodies[request % len(bodies)], _HEADERS)
            answer = client.getresponse()
            content = answer.read()
            seconds.append(time.perf_counter() - began)
            errors += answer.status != 200 or content.count(b'"click"') != ROWS
        client.close()
        return seconds, errors

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        measured = list(pool.map(connection, range(CONNECTIONS)))
    return [second for seconds, _ in measured for second in seconds], sum(errors for _, errors in measured)


def answering(folder: Path, requests: int) -> dict[str, float]:
    log = write_log(200_000, folder)
    artifact = write_artifacts(log, folder)["fp32"]
    rows = pl.read_parquet(log).drop("clicked").with_columns(pl.col("timestamp").dt.epoch("s"))
    bodies = [json.dumps({"rows": rows.slice(start, ROWS).to_dicts()}).encode() for start in range(0, ROWS * 200, ROWS)]
    with service(artifact, folder) as (port, process):
        load(port, bodies, WARM)
        before, began = process.memory_info().rss, time.perf_counter()
        seconds, errors = load(port, bodies, requests)
        took, after = time.perf_counter() - began, process.memory_info().rss
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {
        "requests": len(seconds),
        "errors": errors,
        "p50_ms": p50,
        "p99_ms": p99,
        "requests_per_s": requests / took,
        "memory_before_mb": before / 1e6,
        "memory_after_mb": after / 1e6,
        "memory_growth": after / before,
    }


def large_artifact(out: Path) -> None:
    """A gigabyte of float32 rows, one of them for each value of a vocabulary."""
    features = {"item": {"kind": "id"}}
    config = DataConfig.model_validate({"log": "none", "tasks": {"click": {"column": "click"}}, "features": features})
    values = pl.select(pl.format("item-{}", pl.int_range(_VALUES))).to_series()
    counts = pl.ones(_VALUES, pl.Int64, eager=True)
    encoder = Encoder(Plan.of(config), Fitted({"item": Vocabulary(values, counts)}, {}))
    shape = RankerConfig.model_validate({"dim": _DIM, "tower": {"kind": "mlp"}})
    tables = {"item": torch.zeros(encoder.schema.table("item").rows, _DIM)}
    ranker = Ranker(shape, encoder.schema, PlainTables(encoder.schema, shape, {"item": tables["item"][:1]}, {}, {}))
    card = ModelCard(name="large", versions={})
    write_artifact(Weights(shape, encoder.schema, tables, ranker.dense_state()), encoder, None, card, out)


def opening(folder: Path) -> dict[str, float]:
    path = folder / "large"
    large_artifact(path)
    began = time.perf_counter()
    artifact = Artifact.open(path)
    scorer = Scorer(artifact)
    opened = time.perf_counter()
    artifact.encoder.warm()
    warm = time.perf_counter()
    scorer.score(pl.DataFrame({"item": ["item-7", "none"]}))
    scored = time.perf_counter()
    Artifact.open(path, verify="full")
    checked = time.perf_counter()
    return {
        "artifact_bytes": artifact.bytes,
        "open_s": opened - began,
        "warm_s": warm - opened,
        "first_score_s": scored - warm,
        "open_and_check_s": checked - scored,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    asked = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        figures = answering(Path(name), asked.requests) | opening(Path(name))
    print(
        table(
            ("", "measured"),
            [(name, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}") for name, value in figures.items()],
        )
    )
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
