"""All steps on a generated log whose truth is known: from raw rows to scores, with a report at the end."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import prepare
from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.evaluation.baselines.measure import write_baselines
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.metrics.binary import auc
from recsys.reports.pages import Tile, byte_size
from recsys.reports.report import Extras, write_report
from recsys.training.train import train
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions

MARK = "planted.json"
"""The file that marks a folder as one that a demo may replace."""

SPARSITY = {
    "quantization": {"table_bits": {"user": 4, "item": 4}, "dense": "int8"},
    "post_pruning": {"sparsity": 0.3, "tables": ["user", "item"]},
}
"""The demo's levers: the least important rows of users and items are pruned, the rest is stored in 4 and 8 bits."""

TABLES = {"user": {"dim": 4}, "item": {"dim": 8}}
"""Narrow rows for tables of mostly rare values: wide ones would learn noise."""

TOLERANCE = 0.005
"""Differences of AUC that a study of the demo ignores: three seeds on its test rows cannot detect smaller ones."""

Announce = Callable[[str, float], None]
"""``announce(step, seconds)``: a step is done."""


@dataclass
class Clock:
    """Announces each step with the time that it took."""

    announce: Announce
    began: float = field(default_factory=time.perf_counter)

    def done(self, step: str) -> None:
        """A step is done."""
        now = time.perf_counter()
        self.announce(step, now - self.began)
        self.began = now


class DemoResult(BaseModel):
    """What a demo measured, as ``recsys demo --json`` prints it.

    Attributes:
        test_auc: Of the ranker.
        auc_ceiling: The best reachable test AUC: that of the true probabilities.
        popularity_auc: Of the popularity baseline; ``linear_auc`` of the linear model.
        checkpoint_bytes: Of the final checkpoint; ``artifact_bytes`` of the artifact.
        artifact_auc: Test AUC of the batch job's scores.
        score_rows_per_s: Rows per second of the batch job.
        report: The page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    test_auc: float
    auc_ceiling: float
    popularity_auc: float
    linear_auc: float
    checkpoint_bytes: int
    artifact_bytes: int
    artifact_auc: float
    score_rows_per_s: float | None
    report: Path


def run_demo(out: Path, *, rows: int, seed: int, announce: Announce) -> DemoResult:
    """Generate, prepare, train, evaluate, compare, export, score, report; everything is left in ``out``.

    An ``out`` that an earlier demo wrote is replaced.

    Raises:
        UserError: ``out`` holds something else, or the demo is too small.
    """
    clear(out)
    clock = Clock(announce)
    log = out / "log.parquet"
    planted = generate(DemoConfig(rows=rows, seed=seed), log)
    clock.done(f"generated {rows:,} rows with a planted truth")
    config = _config(out, log, seed)
    dataset = prepare(config.data, out / "dataset")
    clock.done("prepared the data set")
    result = train(config, dataset, out / "run")
    clock.done(f"trained {result.steps:,} steps at {result.samples_per_s:,.0f} rows/s")
    test = evaluate(out / "run", dataset, "test").tasks["click"]
    evaluate(out / "run", dataset, "valid")
    clock.done("evaluated")
    baselines = write_baselines(out / "run", dataset, "test", ("popularity", "linear"))
    clock.done("trained the baselines")
    artifact = export_run(out / "run", out / "artifact")
    clock.done("exported the artifact")
    job = run_job(artifact, str(log), out / "scores", JobOptions())
    artifact_auc = _test_auc(log, out / "scores", dataset.splits["test"])
    clock.done(f"scored {job.rows_out:,} rows")
    checkpoint_bytes = _folder_bytes(out / "run" / "checkpoints" / "final")
    tiles = [
        Tile("Artifact", byte_size(artifact.bytes), f"checkpoint {byte_size(checkpoint_bytes)}"),
        Tile("Scoring rate", f"{(job.rows_per_s or 0) / 1000:,.0f}k rows/s", "raw Parquet to scores"),
    ]
    extras = Extras(ceiling=planted.auc_ceiling, tiles=tiles)
    report = write_report([out / "run"], out / "report.html", extras=extras)
    clock.done("wrote the report")
    return DemoResult(
        test_auc=test["auc"],
        auc_ceiling=planted.auc_ceiling,
        popularity_auc=baselines["popularity"]["auc"],
        linear_auc=baselines["linear"]["auc"],
        checkpoint_bytes=checkpoint_bytes,
        artifact_bytes=artifact.bytes,
        artifact_auc=artifact_auc,
        score_rows_per_s=job.rows_per_s,
        report=report,
    )


def clear(out: Path) -> None:
    """Remove what an earlier demo wrote to ``out``.

    Raises:
        UserError: ``out`` holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists()):
        raise UserError(f"{out} holds something that was not written by a demo: name another folder.")
    shutil.rmtree(out)


def _config(out: Path, log: Path, seed: int) -> ExperimentConfig:
    """The experiment, also written to ``config.yaml`` to experiment with."""
    content = demo_experiment(str(log))
    content |= {"seed": seed, "sparsity": SPARSITY, "ablation": {"tolerance": TOLERANCE}}
    content["model"]["tables"] = TABLES
    write_file(out / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    return load_config(out / "config.yaml")


def _test_auc(log: Path, scores: Path, test_rows: int) -> float:
    """AUC of the scores of the log's last rows, which are the test split."""
    clicked = pl.scan_parquet(log, glob=False).select("clicked").tail(test_rows).collect()["clicked"].to_numpy()
    parts = sorted(scores.glob("part-*.parquet"))
    score = pl.scan_parquet(parts, glob=False).select("click").tail(test_rows).collect()["click"].to_numpy()
    return auc(clicked.astype(float), score)


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
