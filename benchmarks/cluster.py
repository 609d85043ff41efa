"""What preparing a log with a past costs on a Ray cluster: processor time of driver and workers, bytes, memory.

The log has 200,000 users and 50,000 items per million rows, as text, in Parquet; its config has a history of 50, two
statistics (by item, by user and surface) and a recency (by user and item): four entities, so rows are dealt by four
keys. The local engine prepares it first, and the data set of the cluster must have the same files. Processor time does
not depend on what else the machine does; workers are those of one machine, so nothing crosses a network, and `moved` is
what they read and write per row. Memory is the most that the driver held: it must not grow with the rows.

`python -m benchmarks.cluster --rows 1000000 2000000 --workers 1 2` for other sizes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from benchmarks.common import machine, peak_rss_bytes, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.features.config import DataConfig
from recsys.cluster.preparing import ray_engine

CHUNK = 1 << 20


def write_log(rows: int, log: Path) -> None:
    """Rows in the order of their times, the same in every run."""
    log.mkdir()
    random = np.random.default_rng(0)
    for first in range(0, rows, CHUNK):
        size = min(CHUNK, rows - first)
        frame = pl.DataFrame(
            {
                "time": np.arange(first, first + size) + 1_700_000_000,
                "user": random.integers(0, rows // 5, size),
                "item": random.zipf(1.2, size) % (rows // 20),
                "surface": random.integers(0, 8, size),
                "price": random.random(size),
                "clicked": (random.random(size) < 0.1).astype(np.int8),
            }
        )
        text = frame.with_columns(pl.format("user-{}", "user"), pl.format("item-{}", "item"))
        text.write_parquet(log / f"{first:012}.parquet")


def config(log: Path) -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": str(log),
            "time": "time",
            "user": "user",
            "tasks": {"click": {"column": "clicked"}},
            "split": {"by": "time", "valid": 0.05, "test": 0.05},
            "features": {
                "user": {"kind": "id"},
                "item": {"kind": "id"},
                "surface": {"kind": "id"},
                "price": {"kind": "number"},
                "seen": {"kind": "history", "of": ["item"], "last": 50},
                "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["item"]},
                "visits": {"kind": "statistic", "measure": "count", "by": ["user", "surface"]},
                "again": {"kind": "recency", "by": ["user", "item"]},
            },
        }
    )


def measured(log: Path, out: Path, workers: int) -> dict[str, float]:
    """One prepare in this process, on so many workers; 0 for the local engine."""
    if workers:
        import ray

        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 29)
    began, before = time.perf_counter(), time.process_time()
    used = {"worker_s": 0.0, "moved": 0.0}
    if workers == 0:
        prepare(config(log), out)
    else:
        with ray_engine() as engine:
            prepare(config(log), out, engine=engine)
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::"):
                    times, traffic = process.cpu_times(), process.io_counters()
                    used["worker_s"] += times.user + times.system
                    used["moved"] += traffic.read_chars + traffic.write_chars
    driver = {"seconds": time.perf_counter() - began, "driver_s": time.process_time() - before}
    return driver | used | {"peak_bytes": peak_rss_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=(1_000_000, 2_000_000), help="sizes of the log")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--task", nargs=3, metavar=("LOG", "OUT", "WORKERS"), help="one measurement, in this process")
    arguments = parser.parse_args()
    if arguments.task:
        log, out, workers = arguments.task
        print(json.dumps(measured(Path(log), Path(out), int(workers))))
        return
    print(machine(), "\n")
    results: dict[str, dict[str, Any]] = {}
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as scratch:
            write_log(rows, Path(scratch) / "log")
            made = []
            for workers in (0, *arguments.workers):
                task = [f"{scratch}/log", f"{scratch}/out-{workers}", str(workers)]
                command = [sys.executable, "-m", "benchmarks.cluster", "--task", *task]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[f"{rows:,}, {workers or 'local'}"] = json.loads(done.stdout.splitlines()[-1]) | {"rows": rows}
                made.append(Dataset.open(Path(task[1])).manifest.files)
            if any(files != made[0] for files in made):
                raise RuntimeError("the cluster made another data set than one process")
    rows_of_table = [
        [
            name,
            f"{1e6 * result['driver_s'] / result['rows']:.2f}",
            f"{1e6 * result['worker_s'] / result['rows']:.2f}",
            f"{result['moved'] / result['rows']:.0f}",
            f"{result['peak_bytes'] / 2**20:,.0f}",
            f"{result['seconds']:.1f}",
        ]
        for name, result in results.items()
    ]
    columns = [
        "rows, workers",
        "driver, µs per row",
        "workers, µs per row",
        "moved, B per row",
        "driver MiB",
        "seconds",
    ]
    print(table(columns, rows_of_table), "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
