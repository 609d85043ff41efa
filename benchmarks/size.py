"""How small a ranker becomes for how little AUC: levers together, on Frappe, MovieLens-1M and a large demo log.

Every point is trained with its levers, exported, and measured as it is served; sizes are weights and vocabularies, of
the float32 checkpoint against the artifact. ``python -m benchmarks.size [--seeds N] [--data NAME] [--scratch FOLDER]``;
trials are cached in the scratch folder, so a stopped benchmark goes on.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.common import ROOT, machine, real_data, table
from data_pipelines.dataset import Dataset, prepare
from data_pipelines.importers import frappe, movielens
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.ablation.trials import TrialStore
from recsys.ablation.workers import Workers
from recsys.config import ExperimentConfig, parse_config, read_yaml
from recsys.engines import processes
from recsys.frontier import Frontier, Overrides

LOSSES = (0.001, 0.003)
LARGE_ROWS = 1_000_000

INT8: Overrides = {"sparsity.quantization": {"table_bits": 8, "dense": "int8"}}
INT4: Overrides = {"sparsity.quantization": {"table_bits": 4, "dense": "int8"}}
INT4_BOTH: Overrides = {"sparsity.quantization": {"table_bits": 4, "dense": "int4"}}


SMALL: Overrides = INT4_BOTH | {"sparsity.low_rank": {"cross": 8}}
SMALLER: Overrides = INT4_BOTH | {"sparsity.low_rank": {"cross": 8, "energy": 0.9}}


def pruned(*, rows: float = 0.0, units: float) -> Overrides:
    """Levers of training: shares of each table's rows and of hidden units that go."""
    levers: Overrides = {"sparsity.unit_pruning": {"sparsity": units, "begin": 0.1, "end": 0.5}}
    if rows:
        levers["sparsity.row_pruning"] = {"sparsity": rows, "begin": 0.1, "end": 0.5, "scope": "global"}
    return levers


TRAINED = (
    pruned(units=0.75),
    pruned(units=0.9),
    pruned(rows=0.25, units=0.9),
    pruned(rows=0.8, units=0.9),
    pruned(rows=0.95, units=0.9),
)
POINTS: list[Overrides] = [
    {},
    INT8,
    INT4,
    INT4_BOTH,
    SMALL,
    *(levers | rest for levers in TRAINED for rest in (INT4, INT4_BOTH, SMALL, SMALLER)),
]


@dataclass(frozen=True)
class Source:
    """A data set of the benchmark: how its log is made, and its experiment."""

    name: str
    log: Callable[[Path], object]
    experiment: Callable[[str], dict[str, Any]]


def sources() -> list[Source]:
    """Frappe and MovieLens-1M where ``RECSYS_DATA`` is set, and the large demo log."""
    found = []
    for name, convert in (("frappe", frappe.convert), ("ml-1m", movielens.convert)):
        if folder := real_data(name):
            found.append(Source(name, lambda out, f=folder, c=convert: c(f, out), lambda log, n=name: _example(n, log)))
    large = DemoConfig.large(rows=LARGE_ROWS)
    return [*found, Source("demo-large", lambda out: generate(large, out), demo_experiment)]


def _example(name: str, log: str) -> dict[str, Any]:
    content = read_yaml(ROOT / "examples" / f"{name}.yaml")
    return content | {"data": content["data"] | {"log": log}}


def curve(source: Source, scratch: Path, *, seeds: int) -> pl.DataFrame:
    """All points of one data set, means over ``seeds``."""
    folder = scratch / source.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.parquet"
    if not log.exists():
        source.log(log)
    config = parse_config(ExperimentConfig, source.experiment(str(log)), source=source.name)
    if not (folder / "dataset").exists():
        prepare(config.data, folder / "dataset")
    data = Dataset.open(folder / "dataset", verify="sizes")
    with processes() as engine:
        workers = Workers(folder / "dataset", TrialStore(folder / "trials"), engine)
        searched = Frontier(config, data, workers, POINTS, seeds=seeds)
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            print(f"{source.name}: {done} of {len(searched.trials)} trials", flush=True)

        searched.run(tell)
        return searched.table()


def ratio_at(points: pl.DataFrame, loss: float) -> float:
    """The largest ratio among the points that lose at most ``loss`` of the mean test AUC."""
    within = points.filter(pl.col("auc_change") >= -loss)["ratio"]
    return float(within.max())  # type: ignore[arg-type]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--data", action="append", help="Only this data set; may be given again.")
    arguments.add_argument("--scratch", type=Path)
    chosen = arguments.parse_args()
    print(machine())
    if "RECSYS_DATA" not in os.environ:
        print("RECSYS_DATA is not set: only the demo log is measured.")
    scratch = chosen.scratch or Path(tempfile.mkdtemp(prefix="size-"))
    curves = {}
    for source in sources():
        if chosen.data and source.name not in chosen.data:
            continue
        points = curves[source.name] = curve(source, scratch, seeds=chosen.seeds)
        rows = [
            [
                row["point"],
                f"{row['auc']:.5f}",
                f"{row['auc_change']:+.5f}",
                f"{row['model_bytes']:,.0f}",
                f"{row['ratio']:.1f}",
            ]
            for row in points.iter_rows(named=True)
        ]
        columns = ["levers", "test AUC", "change", "bytes", "ratio"]
        print(f"\n{source.name}, {chosen.seeds} seed(s)\n{table(columns, rows)}\n")
    result: dict[str, Any] = {
        f"ratio_at_{loss}": statistics.median(ratio_at(points, loss) for points in curves.values()) for loss in LOSSES
    }
    result["by_data"] = {
        name: {f"ratio_at_{loss}": ratio_at(points, loss) for loss in LOSSES} for name, points in curves.items()
    }
    kept = ("point", "auc", "auc_change", "logloss", "model_bytes", "ratio")
    result["curves"] = {name: points.select(kept).to_dicts() for name, points in curves.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
