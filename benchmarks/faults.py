"""What SIGKILL at random moments costs: nothing. Scoring, training, and jobs of several workers on PostgreSQL.

Every victim is forked from a process that has imported everything, so that the kills hit the work and not its imports.
(That process must not use Polars itself before the last fork: a fork does not inherit its threads.)
``python -m benchmarks.faults --kills 20 --trainings 5 --jobs 100`` for a quicker look.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.common import machine
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.synthetic import DemoConfig, generate
from recsys.config.experiment import ExperimentConfig
from recsys.export.export import export_run
from recsys.runs.checkpoints import load_weights
from recsys.training.trainer import train
from serving.artifact.artifact import Artifact
from serving.batch import inputs
from serving.batch.batch_job import run_job
from serving.http.allowed_paths import Roots
from serving.http.jobs import JobStore
from serving.http.worker import Worker, stopped_by_signal
from tests.postgres_server import binaries, postgres_server

WORKERS, PART_ROWS, LEASE_S = 4, 4096, 3.0


def forked(work: Callable[[], object]) -> int:
    """Start ``work`` in a forked process, quiet; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> bool:
    """Wait for a forked process; whether it ended well."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def killed(work: Callable[[], object], after: float) -> bool:
    """Start ``work`` and kill it after so many seconds; false when it was done before."""
    child = forked(work)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return not ended(child)


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    assert ended(forked(work)), "the undisturbed work failed"
    return time.perf_counter() - began


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def scoring(artifact: Path, rows: Path, folder: Path, kills: int, chance: random.Random) -> tuple[int, int]:
    """Kill a job at random moments, finish it, compare every byte. ``(kills that hit, identical outputs)``."""

    def work(out: Path) -> Callable[[], object]:
        return lambda: run_job(Artifact.open(artifact), str(rows), out, threads=2)

    whole = seconds_of(work(folder / "whole"))
    expected, hit, identical = files(folder / "whole"), 0, 0
    while hit < kills:
        out = folder / f"out{hit}"
        hits = killed(work(out), chance.uniform(0, whole))
        assert ended(forked(work(out)))
        same = files(out) == expected
        if hits:
            hit, identical = hit + 1, identical + same
    return hit, identical


def training(
    config: ExperimentConfig, dataset: Path, folder: Path, kills: int, chance: random.Random
) -> tuple[int, int]:
    """Kill a training at random moments, resume it, compare every weight. ``(kills that hit, identical models)``."""

    def work(run: Path) -> Callable[[], object]:
        return lambda: train(config, Dataset.open(dataset), run, resume=run.exists())

    whole = seconds_of(work(folder / "whole"))
    expected, hit, identical = load_weights(folder / "whole"), 0, 0
    while hit < kills:
        run = folder / f"run{hit}"
        if killed(work(run), chance.uniform(0, whole)):
            assert ended(forked(work(run)))
            weights = load_weights(run)
            hit += 1
            identical += all(
                torch.equal(value, getattr(expected, part)[name])
                for part in ("tables", "dense")
                for name, value in getattr(weights, part).items()
            )
    return hit, identical


def jobs(artifact: Path, root: Path, count: int, chance: random.Random) -> tuple[int, int, int]:
    """Work ``count`` jobs off by four workers that are killed at random. ``(done, done exactly once, kills)``."""

    def write_inputs() -> None:
        rows = pl.read_parquet(root / "rows.parquet")
        for number in range(count):
            rows.slice(number % 997, 300).write_parquet(root / f"in{number}.parquet", row_group_size=100)

    assert ended(forked(write_inputs)), "writing the inputs failed"
    with postgres_server() as url:
        store = JobStore(url, lease_s=LEASE_S)
        store.register("demo", str(artifact), "bench")
        for number in range(count):
            store.submit(artifact="demo", source=f"in{number}.parquet", output=f"out{number}", options={})
        store.engine.dispose()

        def work() -> None:
            with stopped_by_signal() as stop:
                Worker(JobStore(url, lease_s=LEASE_S), Roots([root]), threads=1, tick_s=0.3).run(stop)

        workers, kills = [forked(work) for _ in range(WORKERS)], 0
        while (finished := store.counts()["done"]) < count:
            # Wait for some jobs, so that a slow machine gets on at all, and then for a random moment in the next ones.
            wanted = min(finished + chance.randrange(1, 10), count)
            while store.counts()["done"] < wanted:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.3))
            victim = chance.randrange(WORKERS)
            os.kill(workers[victim], signal.SIGKILL)
            os.waitpid(workers[victim], 0)
            workers[victim], kills = forked(work), kills + 1
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
        for worker in workers:
            os.waitpid(worker, 0)
        done, rows = store.jobs(state="done", limit=count), pl.read_parquet(root / "rows.parquet")
        once = sum(_once(root, rows, Path(job.source).stem, Path(job.output).name) for job in done)
    return len(done), once, kills


def _once(root: Path, rows: pl.DataFrame, source: str, output: str) -> bool:
    """Whether every row of a job's input is in its output once, in order, and nothing else is in the folder."""
    scores = pl.read_parquet(root / output / "part-*.parquet")
    expected = rows.slice(int(source.removeprefix("in")) % 997, 300)
    names = sorted(path.name for path in (root / output).iterdir())
    return (
        scores.select("user_id", "item_id").equals(expected.select("user_id", "item_id"))
        and names[-1] == "part-00000.parquet"
        and len(names) == 3
        and not (root / f".{output}.job").exists()
    )


def _prepared(folder: Path) -> tuple[ExperimentConfig, Path]:
    """A demo log of 60,000 rows, its data set, and a short run; in a process of its own, so that forks stay clean."""
    generate(DemoConfig(rows=60_000), folder / "log.parquet")
    config = ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(folder / "log.parquet"),
                "time": "timestamp",
                "user": "user_id",
                "tasks": {"click": {"column": "clicked"}},
                "keys": ["user_id", "item_id"],
                "features": {
                    "user": {"kind": "id", "column": "user_id"},
                    "item": {"kind": "id", "column": "item_id"},
                    "tags": {"kind": "bag"},
                    "price": {"kind": "number"},
                },
            },
            "model": {"dim": 8, "tower": {"kind": "moe", "experts": 4, "hidden": 32}},
            "train": {"epochs": 1, "batch_size": 1024, "checkpoint_every": 10},
        }
    )

    def work() -> None:
        dataset = prepare(config.data, folder / "dataset")
        train(config, dataset, folder / "run")
        export_run(folder / "run", folder / "artifact")
        (folder / "root").mkdir()
        rows = pl.read_parquet(folder / "log.parquet").drop("clicked")
        rows.write_parquet(folder / "root" / "rows.parquet", row_group_size=PART_ROWS)

    assert ended(forked(work)), "preparing failed"
    return config, folder / "dataset"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(np.random.default_rng().integers(2**31)))
    asked = parser.parse_args()
    print(machine(), f"seed {asked.seed}", sep="; ", flush=True)
    chance, began = random.Random(asked.seed), time.monotonic()
    inputs.PART_ROWS = PART_ROWS
    result: dict[str, int | None] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, dataset = _prepared(folder)
        (folder / "scores").mkdir()
        (folder / "runs").mkdir()
        rows = folder / "root" / "rows.parquet"
        result["score_kills"], result["score_identical"] = scoring(
            folder / "artifact", rows, folder / "scores", asked.kills, chance
        )
        print(f"scoring: {result}, {time.monotonic() - began:.0f} s", flush=True)
        result["train_kills"], result["train_identical"] = training(
            config, dataset, folder / "runs", asked.trainings, chance
        )
        print(f"training: {result}, {time.monotonic() - began:.0f} s", flush=True)
        if binaries() is None:
            sys.exit("PostgreSQL's server programs (initdb, postgres) are not installed: the jobs cannot be measured.")
        result["jobs"], result["jobs_exactly_once"], result["job_kills"] = jobs(
            folder / "artifact", folder / "root", asked.jobs, chance
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
