"""What SIGKILL costs: nothing. Scoring, training, and jobs of several workers on PostgreSQL.

Every trial has a folder of its own. A victim reports each step (a training step, a finished part), and is killed a
random moment after a random step. In three of four trials of scoring, a finished part is removed, cut short or has a
bit flipped between the kill and the restart. What then comes out is compared with an undisturbed run: scores byte by
byte, weights number by number, jobs row by row.

Victims are forked from a process that has imported everything, so that kills interrupt the work and not the imports.
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
from data_pipelines.disk.storage import MANIFEST, Manifest
from data_pipelines.synthetic import DemoConfig, generate
from models.weights import Weights
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run
from recsys.runs.checkpoints import load_weights
from recsys.training.train import train
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


Tick = Callable[[], None]
"""Tells that the victim has done another step."""


def _tell(pipe: int) -> None:
    os.write(pipe, b".")


def killed(work: Callable[[Tick], object], step: int, wait_s: float) -> bool:
    """Start ``work`` and kill it ``wait_s`` after its step ``step``; false when it was done before."""
    reader, writer = os.pipe()
    child = forked(lambda: work(lambda: _tell(writer)))
    os.close(writer)
    for _ in range(step):
        if not os.read(reader, 1):
            break
    time.sleep(wait_s)
    os.kill(child, signal.SIGKILL)
    os.close(reader)
    return not ended(child)


def undisturbed(work: Callable[[Tick], object]) -> tuple[int, float]:
    """Do ``work`` to its end; how many steps it has, and seconds per step."""
    reader, writer = os.pipe()
    began = time.perf_counter()
    child = forked(lambda: work(lambda: _tell(writer)))
    os.close(writer)
    with os.fdopen(reader, "rb") as ticks:
        steps = len(ticks.read())
    assert ended(child), "the undisturbed work failed"
    return steps, (time.perf_counter() - began) / steps


def completed(work: Callable[[Tick], object]) -> bool:
    """Do ``work`` to its end in a forked process; whether it ended well."""
    return ended(forked(lambda: work(lambda: None)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path, random.Random], None] | None, ...] = (None, lambda path, _: path.unlink(), cut, flip)


def scoring(artifact: Path, rows: Path, folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Kill a job, damage a part of it, finish it, and compare every byte."""

    def work(out: Path) -> Callable[[Tick], object]:
        return lambda tick: run_job(
            Artifact.open(artifact), str(rows), out, threads=2, progress=lambda done, _: tick() if done else None
        )

    steps, step_s = undisturbed(work(folder / "whole"))
    expected, found = files(folder / "whole"), {"score_kills": 0, "score_damaged": 0, "score_identical": 0}
    for _trial in range(2 * kills):
        if found["score_kills"] == kills:
            break
        with tempfile.TemporaryDirectory(dir=folder) as name:
            out = Path(name, "out")
            damage = DAMAGES[found["score_kills"] % len(DAMAGES)]
            first = 0 if damage is None else 1
            hit = killed(work(out), chance.randrange(first, steps), chance.uniform(0, step_s))
            parts = sorted(Path(name, ".out.job").glob("part-*.parquet"))
            if not hit or (damage is not None and not parts):
                continue
            if damage is not None:
                damage(chance.choice(parts), chance)
                found["score_damaged"] += 1
            found["score_kills"] += 1
            found["score_identical"] += completed(work(out)) and files(out) == expected
    return found


def training(
    config: ExperimentConfig, dataset: Path, folder: Path, kills: int, chance: random.Random
) -> dict[str, int]:
    """Kill a training, resume it, and compare every weight."""

    def work(run: Path) -> Callable[[Tick], object]:
        return lambda tick: train(config, Dataset.open(dataset), run, resume=run.exists(), on_step=lambda *_: tick())

    steps, step_s = undisturbed(work(folder / "whole"))
    expected, found = load_weights(folder / "whole"), {"train_kills": 0, "train_identical": 0}
    for _trial in range(2 * kills):
        if found["train_kills"] == kills:
            break
        with tempfile.TemporaryDirectory(dir=folder) as name:
            run = Path(name, "run")
            if killed(work(run), chance.randrange(steps), chance.uniform(0, step_s)):
                found["train_kills"] += 1
                found["train_identical"] += completed(work(run)) and _same(load_weights(run), expected)
    return found


def _same(weights: Weights, expected: Weights) -> bool:
    """Whether all tables and dense parameters of two models are equal, number by number."""
    return all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
        for mine, theirs in ((weights.tables, expected.tables), (weights.dense, expected.dense))
    )


def jobs(artifact: Path, root: Path, count: int, chance: random.Random) -> dict[str, int]:
    """Work ``count`` jobs off by four workers that are killed at random."""

    def write_inputs() -> None:
        rows = pl.read_parquet(root / "rows.parquet")
        for number in range(count):
            rows.slice(number % 997, 300).write_parquet(root / f"in{number}.parquet", row_group_size=100)

    assert ended(forked(write_inputs)), "writing the inputs failed"
    with postgres_server() as url:
        store = JobStore(url, lease_s=LEASE_S)
        manifest = Manifest.read(artifact / MANIFEST)
        store.register("demo", str(artifact), manifest.fingerprint)
        for number in range(count):
            store.submit(artifact="demo", source=f"in{number}.parquet", output=f"out{number}", options={})
        store.engine.dispose()

        def work() -> None:
            with stopped_by_signal() as stop:
                Worker(JobStore(url, lease_s=LEASE_S), Roots([root]), threads=1, tick_s=0.3).run(stop)

        workers, kills = [forked(work) for _ in range(WORKERS)], 0
        while (finished := _finished(store)) < count:
            # Wait for some jobs, so that a slow machine gets on at all, and then for a random moment in the next ones.
            wanted = min(finished + chance.randrange(1, 10), count)
            while _finished(store) < wanted:
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
    return {"jobs": len(done), "jobs_exactly_once": once, "job_kills": kills}


def _finished(store: JobStore) -> int:
    """How many jobs have ended, well or not: one that failed must not be waited for."""
    counts = store.counts()
    return counts["done"] + counts["failed"]


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
    result: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, dataset = _prepared(folder)
        (folder / "scores").mkdir()
        (folder / "runs").mkdir()
        rows = folder / "root" / "rows.parquet"
        result |= scoring(folder / "artifact", rows, folder / "scores", asked.kills, chance)
        print(f"scoring: {result}, {time.monotonic() - began:.0f} s", flush=True)
        result |= training(config, dataset, folder / "runs", asked.trainings, chance)
        print(f"training: {result}, {time.monotonic() - began:.0f} s", flush=True)
        if binaries() is None:
            sys.exit("PostgreSQL's server programs (initdb, postgres) are not installed: the jobs cannot be measured.")
        result |= jobs(folder / "artifact", folder / "root", asked.jobs, chance)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
