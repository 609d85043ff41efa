"""Tracking of measurements: ``metrics.parquet``, TensorBoard events, and MLflow if it is configured."""

import os
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl

from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from data_pipelines.locations import expand
from data_pipelines.redaction import redacted

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
        mlflow: Tracking URI, a folder or a server, ``${NAME}`` read from the environment; ``None`` for none.
        parameters: The config, shown by MLflow.
    """

    def __init__(
        self,
        run: Path,
        *,
        resume_step: int | None = None,
        mlflow: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / METRICS_FILE
        self._began = time.perf_counter()
        self._rows: list[tuple[Any, ...]] = []
        if resume_step is not None and self._path.exists():
            self._rows = pl.read_parquet(self._path, glob=False).filter(pl.col("step") <= resume_step).rows()
        purge = None if resume_step is None else resume_step + 1
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=purge)
        self._mlflow = _mlflow(mlflow, run, parameters or {}) if mlflow else None

    def log(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Record ``values`` as measured on ``split`` after ``step`` steps."""
        seconds = time.perf_counter() - self._began
        for metric, value in values.items():
            self._rows.append((step, epoch, seconds, split, metric, float(value)))
            self._tensorboard.add_scalar(f"{split}/{metric}", value, step)
        if self._mlflow is not None:
            self._mlflow.log_metrics({f"{split}/{metric}": value for metric, value in values.items()}, step=step)

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
            self._mlflow.end_run("FINISHED" if error is None else "FAILED")


def _mlflow(uri: str, run: Path, parameters: Mapping[str, Any]) -> Any:
    try:
        import mlflow
    except ModuleNotFoundError:
        raise UserError(
            "train.mlflow needs MLflow: pip install 'sparse-recsys[tracking]', or remove the key."
        ) from None
    address = expand(uri)
    if "://" not in address:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which needs no database, but since 3.17 this word
    try:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URL with its password
        mlflow.set_tracking_uri(address)
        mlflow.set_experiment("recsys")
        mlflow.start_run(run_name=run.name)
        mlflow.log_params(dict(_flat(redacted(parameters))))
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train.mlflow: {uri} cannot be used ({reason}): give a folder or a server, or remove the key."
        ) from None
    return mlflow


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return rows
