"""What many distinct ids cost: preparing, the start of training, a step, export, opening and the first score.

The log has a user, an item (50,000), a surface, a number and a label. About 55% of its rows bring a user that is in no
other row, as logs of cookies do; beside it, the same log with 200,000 users. Every measurement is a process of its own,
timed after its imports, with the most memory that it held. ``growth`` compares two sizes of that log: how many times
longer the larger one takes, divided by how many times more ids it has. Above 1, a step grows faster than the ids.

``python -m benchmarks.ids --rows 2000000 30000000`` for other sizes than the two by default.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import machine, peak_rss_bytes, table
from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run
from recsys.training.trainer import Trainer
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer

ROWS = (1_000_000, 4_000_000)
FEW_USERS = 200_000
CHUNK = 1 << 20
STEPS = 20


def write_log(rows: int, log: Path, *, users: int | None) -> None:
    """A log of ``rows`` rows; with ``users`` of ``None`` most rows bring a user of their own."""
    log.mkdir()
    random = np.random.default_rng(0)
    for first in range(0, rows, CHUNK):
        size = min(CHUNK, rows - first)
        if users is None:
            again = random.random(size) < 0.4
            known = random.integers(0, max(1, rows // 20), size)
            user = np.where(again, known, rows + np.arange(first, first + size))
        else:
            user = random.integers(0, users, size)
        frame = pl.DataFrame(
            {
                "time": np.arange(first, first + size) + 1_700_000_000,
                "user": user,
                "item": random.integers(0, 50_000, size),
                "surface": random.integers(0, 8, size),
                "price": random.random(size),
                "clicked": (random.random(size) < 0.1).astype(np.int8),
            }
        )
        text = frame.with_columns(pl.format("user-{}", pl.col("user") * 2_654_435_761 % 2**40).alias("user"))
        text.write_parquet(log / f"{first:012}.parquet")


def config(log: Path) -> ExperimentConfig:
    features = {"user": {"kind": "id"}, "item": {"kind": "id"}, "surface": {"kind": "id"}, "price": {"kind": "number"}}
    return ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(log),
                "time": "time",
                "tasks": {"click": {"column": "clicked"}},
                "split": {"by": "time", "valid": 0.01, "test": 0.01},
                "features": features,
            },
            "model": {"dim": 16, "tower": {"kind": "mlp", "hidden": [64]}},
            "train": {"batch_size": 4096, "epochs": 1},
            "sparsity": {"quantization": {"table_bits": 8}},
        }
    )


def run_prepare(folder: Path) -> dict[str, float]:
    seconds = _timed(lambda: prepare(config(folder / "log").data, folder / "dataset"))
    return {"seconds": seconds, "ids": Dataset.open(folder / "dataset").schema.table("user").rows}


def run_train(folder: Path) -> dict[str, float]:
    """Seconds until the first step can begin, of a step, and of a checkpoint with the metrics of the valid split."""
    dataset = Dataset.open(folder / "dataset", verify="sizes")
    began = time.perf_counter()
    with Trainer(config(folder / "log"), dataset, folder / "run") as trainer:
        trainer.start()
        batches = iter(trainer.loader)
        trainer.train_step(next(batches))
        start = time.perf_counter() - began
        step = _timed(lambda: [trainer.train_step(next(batches)) for _ in range(STEPS)]) / STEPS
        end = _timed(trainer.finish)
    return {"seconds": start, "step": step, "end": end}


def run_export(folder: Path) -> dict[str, float]:
    return {"seconds": _timed(lambda: export_run(folder / "run", folder / "artifact"))}


def run_score(folder: Path) -> dict[str, float]:
    rows = pl.scan_parquet(folder / "log").head(1).collect()
    began = time.perf_counter()
    Scorer(Artifact.open(folder / "artifact")).score(rows)
    return {"seconds": time.perf_counter() - began}


TASKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "prepare": run_prepare,
    "start of training": run_train,
    "export": run_export,
    "opening and first score": run_score,
}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(rows: int, *, users: int | None, names: tuple[str, ...] = tuple(TASKS)) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of each task on one log."""
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_log(rows, Path(scratch) / "log", users=users)
        for name in names:
            command = [sys.executable, "-m", "benchmarks.ids", "--task", name, scratch]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS, help="sizes of the log, in ascending order")
    parser.add_argument("--task", nargs=2, metavar=("NAME", "FOLDER"), help="one measurement, in this process")
    arguments = parser.parse_args()
    if arguments.task:
        name, folder = arguments.task
        print(json.dumps(TASKS[name](Path(folder)) | {"peak_bytes": peak_rss_bytes()}))
        return
    print(machine(), "\n")
    small, large = (measure(rows, users=None) for rows in arguments.rows)
    few = measure(arguments.rows[1], users=FEW_USERS, names=("prepare",))
    ids = [result["prepare"]["ids"] for result in (small, large)]
    growth = {name: _growth(small[name], large[name], "seconds", ids) for name in TASKS}
    growth["step"] = _growth(small["start of training"], large["start of training"], "step", ids)
    growth["checkpoint and metrics"] = _growth(small["start of training"], large["start of training"], "end", ids)
    lines = []
    for name, key, unit in [
        *((name, "seconds", "s") for name in ("prepare", "start of training")),
        *[("start of training", "step", "ms"), ("start of training", "end", "s")],
        *((name, "seconds", "s") for name in ("export", "opening and first score")),
    ]:
        label = {"step": "step", "end": "checkpoint and metrics"}.get(key, name)
        values = [result[name][key] * (1000 if unit == "ms" else 1) for result in (small, large)]
        peak = large[name]["peak_bytes"] / 2**30
        lines.append(
            [f"{label}, {unit}", *(f"{value:,.2f}" for value in values), f"{growth[label]:.2f}", f"{peak:.2f}"]
        )
    print(table(["", *(f"{count:,.0f} ids" for count in ids), "growth", "peak GiB"], lines), "\n")
    ratio = few["prepare"]["seconds"] / large["prepare"]["seconds"]
    print(f"Preparing {arguments.rows[1]:,} rows: {ratio:.2f} times the rate of the log with {FEW_USERS:,} users.\n")
    result = {"ids": ids, "prepare_vs_few_users": ratio, "growth": growth}
    print(json.dumps(result | {"peak_bytes": {name: large[name]["peak_bytes"] for name in TASKS}}))


def _growth(small: dict[str, float], large: dict[str, float], key: str, ids: list[float]) -> float:
    return (large[key] / small[key]) / (ids[1] / ids[0])


if __name__ == "__main__":
    main()
