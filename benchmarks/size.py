"""How small a ranker becomes for how little AUC: levers together, on Frappe, MovieLens-1M and a large demo log.

Every point is trained with its levers, exported, and measured as it is served. Sizes are weights, vocabularies and the
encoder's description: of the float32 checkpoint against the artifact. A point counts as within a loss if it is on the
valid split, where points may be chosen, and on the test split as well. (Which points there are was settled with
test figures on screen.) Beside them stands what to prune 95% and 99% of the tables by.

``python -m benchmarks.size [--seeds N] [--data NAME] [--scratch FOLDER]``; trials are cached in the scratch folder, so
that a stopped benchmark resumes.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.common import machine, real_data, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.importers import frappe, movielens
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import read_yaml
from recsys.studies.frontier import Frontier, Overrides
from recsys.trials.engines import processes
from recsys.trials.trials import TrialStore
from recsys.trials.workers import Workers

LOSSES = (0.001, 0.003)
LARGE_ROWS = 1_000_000
_EXPERIMENTS = Path(__file__).parent / "experiments"

BASE = "float32"
INT8, INT4 = "int8", "int4, clipped"


def bits(table_bits: int) -> Overrides:
    """Tables row by row in so many bits, matrices in int8."""
    return {"sparsity.quantization": {"table_bits": table_bits, "dense": "int8"}}


def grids(tables: float, dense: float) -> Overrides:
    """One grid for each table and matrix, so many of their root mean squares wide."""
    return {"sparsity.quantization": {"table_step": tables, "dense_step": dense}}


EARLY, LATE = {"begin": 0.05, "end": 0.3}, {"begin": 0.2, "end": 0.32}
"""Early stopping chooses among epochs after a schedule's end, so schedules end where the best epoch may still come. The
late one begins when most ids of a large log have been seen, and ends just before the first of three epochs does."""


def rows(sparsity: float, by: str, *, table: str | None = None, when: Mapping[str, float] = EARLY) -> Overrides:
    """So many of all rows, or of a table's, leave while training; what is left is tuned."""
    which = {"scope": "global"} if table is None else {"tables": [table]}
    return {"sparsity.row_pruning": {"sparsity": sparsity, "by": by, **when, **which}}


def thresholds(sparsity: float, pressure: float) -> Overrides:
    """At least so many of all numbers of the tables become zero while training, by thresholds that are learned."""
    return {"sparsity.pep": {"sparsity": sparsity, "pressure": pressure}}


def weights(sparsity: float) -> Overrides:
    """So many of the dense part's weights become zero while training."""
    return {"sparsity.weight_pruning": {"sparsity": sparsity, "scope": "global"} | EARLY}


def units(sparsity: float) -> Overrides:
    """So many of the tower's units leave while training."""
    return {"sparsity.unit_pruning": {"sparsity": sparsity} | EARLY}


def rows_after(sparsity: float) -> Overrides:
    """So many of all bytes of rows leave after training, by saliency on the valid split."""
    return {"sparsity.post_pruning": {"sparsity": sparsity}}


COMMON: dict[str, Overrides] = {
    BASE: {},
    INT8: bits(8),
    INT4: bits(4),
    "grids 0.5": grids(0.5, 0.5),
    "grids 1": grids(1, 1),
}
REMOVED: dict[str, Overrides] = {
    **{f"{share:.0%} of rows by magnitude, tuned": rows(share, "magnitude") for share in (0.95, 0.99)},
    **{f"{share:.0%} of rows by distance to OOV, tuned": rows(share, "distance") for share in (0.95, 0.99)},
    **{f"{share:.0%} of rows by saliency, after": rows_after(share) for share in (0.95, 0.99)},
}
DEMO_REMOVED: dict[str, Overrides] = {
    f"{share:.0%} of rows by {by}, tuned": rows(share, by, when=LATE)
    for share in (0.95, 0.99)
    for by in ("magnitude", "saliency")
}


@dataclass(frozen=True)
class Source:
    """A data set of the benchmark: how its log is made, its experiment, and the points that are tried on it."""

    name: str
    log: Callable[[Path], object]
    experiment: Callable[[str], dict[str, Any]]
    points: Mapping[str, Overrides]


def sources() -> list[Source]:
    """Frappe and MovieLens-1M where ``RECSYS_DATA`` is set, and the large demo log."""
    found = []
    for name, convert, points in (("frappe", frappe.convert, FRAPPE), ("ml-1m", movielens.convert, MOVIELENS)):
        if folder := real_data(name):
            found.append(Source(name, partial(convert, folder), partial(_pinned, name), points))
    large = DemoConfig.large(rows=LARGE_ROWS)
    return [*found, Source("demo-large", lambda out: generate(large, out), _demo, DEMO)]


def _pinned(name: str, log: str) -> dict[str, Any]:
    content = read_yaml(_EXPERIMENTS / f"size-{name}.yaml")
    return content | {"data": content["data"] | {"log": log}}


def _demo(log: str) -> dict[str, Any]:
    content = demo_experiment(log)
    return content | {"train": content["train"] | {"epochs": 3}, "export": {"packed": True}}


FRAPPE = COMMON | {
    "at least 95% of table numbers by learned thresholds": thresholds(0.95, 0.02),
    "at least 99% of table numbers by learned thresholds": thresholds(0.99, 0.1),
    "grids 1.3 and 1": grids(1.3, 1),
    "half of the units, grids 1 and 1": units(0.5) | grids(1, 1),
    "80% of weights, grids 1 and 0.5": weights(0.8) | grids(1, 0.5),
    "half of the pairs by magnitude, half of the weights, grids 1 and 0.7": rows(0.5, "magnitude", table="pair")
    | weights(0.5)
    | grids(1, 0.7),
    "80% of pairs by distance to OOV, grids 1 and 1": rows(0.8, "distance", table="pair") | grids(1, 1),
    "80% of pairs by distance to OOV, 80% of weights, grids 1 and 0.7": rows(0.8, "distance", table="pair")
    | weights(0.8)
    | grids(1, 0.7),
    **REMOVED,
}
MOVIELENS = COMMON | {
    "at least 99% of table numbers by learned thresholds": thresholds(0.99, 0.1),
    "50% of rows after, grids 0.7 and 1": rows_after(0.5) | grids(0.7, 1),
    "90% of rows after, grids 0.7 and 1": rows_after(0.9) | grids(0.7, 1),
    "90% of weights, 95% of rows by magnitude, grids 0.7 and 0.5": weights(0.9)
    | rows(0.95, "magnitude")
    | grids(0.7, 0.5),
    **{
        f"{u:.0%} of units, 95% of rows by magnitude, grids {t:g} and {d:g}": units(u)
        | rows(0.95, "magnitude")
        | grids(t, d)
        for u, t, d in ((0.75, 0.35, 0.15), (0.75, 0.5, 0.25), (0.75, 0.7, 0.5), (0.85, 0.35, 0.15), (0.85, 0.7, 0.35))
    },
    **REMOVED,
}
DEMO = COMMON | {
    "grids 0.25 and 0.1": grids(0.25, 0.1),
    **DEMO_REMOVED,
    **{
        f"{share:.0%} of rows by saliency, tuned, grids {t:g} and {d:g}": rows(share, "saliency", when=LATE)
        | grids(t, d)
        for share, t, d in (
            (0.7, 0.15, 0.1),
            (0.8, 0.15, 0.1),
            (0.9, 0.15, 0.1),
            (0.95, 0.15, 0.1),
            (0.99, 0.15, 0.1),
            (0.95, 0.5, 0.1),
        )
    },
}


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
        searched = Frontier(config, data, workers, list(source.points.values()), seeds=seeds)
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            print(f"{source.name}: {done} of {len(searched.trials)} trials", flush=True)

        searched.run(tell)
        points = searched.table()
    valid = pl.col("valid_auc") - pl.col("valid_auc").first()
    return points.with_columns(pl.Series("point", list(source.points)), valid_change=valid)


def ratio_at(points: pl.DataFrame, loss: float) -> float:
    """The largest ratio among the points that lose at most ``loss`` of the mean AUC, on valid and on test."""
    within = points.filter((pl.col("valid_change") >= -loss) & (pl.col("auc_change") >= -loss))["ratio"]
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
        lines = [
            [
                row["point"],
                f"{row['auc']:.5f}",
                f"{row['auc_change']:+.5f}",
                f"{row['valid_change']:+.5f}",
                f"{row['model_bytes']:,.0f}",
                f"{row['ratio']:.1f}",
            ]
            for row in points.iter_rows(named=True)
        ]
        columns = ["levers", "test AUC", "change", "on valid", "bytes", "times smaller"]
        print(f"\n{source.name}, {chosen.seeds} seed(s)\n{table(columns, lines)}\n", flush=True)
    result: dict[str, Any] = {
        f"ratio_at_{loss}": statistics.median(ratio_at(points, loss) for points in curves.values()) for loss in LOSSES
    }
    result["by_data"] = {
        name: {f"ratio_at_{loss}": ratio_at(points, loss) for loss in LOSSES} for name, points in curves.items()
    }
    kept = ("point", "auc", "auc_change", "valid_change", "logloss", "model_bytes", "ratio")
    result["curves"] = {name: points.select(kept).to_dicts() for name, points in curves.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
