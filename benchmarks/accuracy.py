"""How well models score on real data: frappe and MovieLens-1M, beside FuxiCTR's figures on the very same files.

Each config of ``examples/`` is prepared once and trained with three seeds; hyperparameters were chosen on the valid
split alone. Beside the test metrics stand the int8 artifact's size and its rate of scoring. Without ``RECSYS_DATA`` the
demo log takes the place of real data.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks.common import ROOT, machine, real_data, table
from data_pipelines.dataset import Dataset, prepare
from data_pipelines.importers import frappe, movielens
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config import ExperimentConfig, load_config
from recsys.evaluation import evaluate
from recsys.exporting import export_run
from recsys.training import train
from serving.scorer import Scorer

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """One config on one data set.

    Attributes:
        key: What the JSON keys of its result begin with.
        config: In ``examples/``.
        data: The folder below ``RECSYS_DATA``, and what turns it into a log.
        peer: Test AUC and log loss of the best known on these files, and whose they are.
    """

    key: str
    config: str
    data: str
    convert: Callable[[Path, Path], int]
    peer: tuple[str, float, float]


TASKS = (
    Task("frappe", "frappe.yaml", "frappe", frappe.convert, ("FuxiCTR FinalNet", 0.98511, 0.13331)),
    Task("ml1m_likes", "ml-1m-likes.yaml", "ml-1m", movielens.convert, ("FuxiCTR DIN, tuned", 0.7827, 0.5674)),
    Task("ml1m", "ml-1m.yaml", "ml-1m", movielens.convert, ("LightGBM on 25 statistics", 0.7941, 0.5452)),
)


@dataclass(frozen=True)
class Measured:
    """One seed's run, and its artifact."""

    auc: float
    logloss: float
    artifact_bytes: int
    rows_per_s: float


def run_seed(config: ExperimentConfig, dataset: Dataset, log: pl.DataFrame, folder: Path) -> Measured:
    """Train, evaluate on the test split, export, and score rows of the log with the artifact."""
    run = folder / f"run-{config.seed}"
    train(config, dataset, run)
    metrics = next(iter(evaluate(run, dataset, "test", draws=0).tasks.values()))
    artifact = export_run(run, folder / f"artifact-{config.seed}", ["sparsity.quantization.table_bits=8"])
    size = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    scorer = Scorer(artifact)
    rows = log.head(100_000)
    scorer.score(rows.head(1000))
    began = time.perf_counter()
    scorer.score(rows)
    return Measured(metrics["auc"], metrics["logloss"], size, len(rows) / (time.perf_counter() - began))


def measure(base: ExperimentConfig, log: Path, folder: Path) -> list[Measured]:
    """One result a seed."""
    dataset = prepare(base.data, folder / "dataset")
    rows = pl.read_parquet(log)
    return [run_seed(base.model_copy(update={"seed": seed}), dataset, rows, folder) for seed in SEEDS]


def main(keys: list[str]) -> None:
    """Measure the tasks of these keys, all if there are none."""
    print(machine())
    rows, result = [], {}
    for task in (task for task in TASKS if not keys or task.key in keys):
        with tempfile.TemporaryDirectory() as name:
            folder, source = Path(name), real_data(task.data)
            log = folder / "log.parquet"
            if source is None:
                print("RECSYS_DATA is not set: on the demo log, which says nothing about the peers' figures.")
                generate(DemoConfig(), log)
                config = ExperimentConfig.model_validate(demo_experiment(str(log)))
            else:
                task.convert(source, log)
                config = load_config(ROOT / "examples" / task.config, [f"data.log={log}"])
            measured = measure(config, log, folder)
        mean = {field: statistics.mean(getattr(m, field) for m in measured) for field in Measured.__annotations__}
        spread = statistics.stdev(m.auc for m in measured)
        result |= {f"{task.key}_auc": round(mean["auc"], 5), f"{task.key}_logloss": round(mean["logloss"], 5)}
        size, rate = f"{mean['artifact_bytes'] / 2**20:.2f} MiB", f"{mean['rows_per_s']:,.0f}"
        rows.append([f"{task.key}, ours", f"{mean['auc']:.5f} ± {spread:.5f}", f"{mean['logloss']:.5f}", size, rate])
        if source is not None:
            rows.append([f"{task.key}, {task.peer[0]}", f"{task.peer[1]:.5f}", f"{task.peer[2]:.5f}", "", ""])
        print(table(["", "test AUC", "test log loss", "artifact", "rows/s"], rows), flush=True)
        if source is None:
            break
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
