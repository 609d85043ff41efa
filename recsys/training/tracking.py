"""Tracking of measurements: ``metrics.parquet``, TensorBoard events, and MLflow if it is configured."""

import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl

from data_pipelines.disk.storage import write_file
from recsys.training.mlflow_run import MlflowRun

METRICS_FILE = "metrics.parquet"
METRICS_SCHEMA = pl.Schema(
    {
        "step": pl.Int64,
        "epoch": pl.Int64,
        "seconds": pl.Float64,
        "split": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
    }
)
"""One row per measurement. ``metric`` is ``loss``, ``samples_per_s`` ..., or ``<task>/auc``; ``split`` train or valid;
``seconds`` since training (or its last resumption) began."""


class Tracker:
    """Collects measurements and writes them; only rank 0 has one.

    Args:
        resume_step: Keep measurements up to this step of the run that is resumed, and drop later ones.
        mlflow: A run of MLflow that is told the same, if there is one.
    """

    def __init__(self, run: Path, *, resume_step: int | None = None, mlflow: MlflowRun | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / METRICS_FILE
        self._began = time.perf_counter()
        self._rows: list[tuple[Any, ...]] = []
        if resume_step is not None and self._path.exists():
            self._rows = pl.read_parquet(self._path, glob=False).filter(pl.col("step") <= resume_step).rows()
        purge = None if resume_step is None else resume_step + 1
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=purge)
        self._mlflow = mlflow

    def log(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Record ``values`` as measured on ``split`` after ``step`` steps."""
        seconds = time.perf_counter() - self._began
        for metric, value in values.items():
            self._rows.append((step, epoch, seconds, split, metric, float(value)))
            self._tensorboard.add_scalar(f"{split}/{metric}", value, step)
        if self._mlflow is not None:
            self._mlflow.log({f"{split}/{metric}": value for metric, value in values.items()}, step)

    def flush(self) -> None:
        """Write ``metrics.parquet`` and flush the events."""
        buffer = BytesIO()
        pl.DataFrame(self._rows, schema=METRICS_SCHEMA, orient="row").write_parquet(buffer)
        write_file(self._path, buffer.getvalue())
        self._tensorboard.flush()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()
        self._tensorboard.close()
        if self._mlflow is not None:
            self._mlflow.end("FINISHED" if error is None else "FAILED")
