"""The effect of levers on a run: quality, bytes on disk and in memory, rates."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from models.codecs.quantization import row_bytes
from models.sparsity.activations import measure_activity
from models.weights import Weights
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_shrunk, shrink_run
from recsys.exporting.size_report import size_report
from serving.artifact.card import SizeReport
from serving.artifact.export import as_served
from serving.artifact.id_remap import Translation
from serving.batch.scorer import Scorer

_MEASURED_ROWS = 50_000
_BATCH_ROWS = 8192


class Measured(BaseModel):
    """Measurements of a whole model, as trained and as served.

    Attributes:
        auc: On the test split (valid if there is none), for the first task; ``artifact_auc`` as served. Likewise log
            loss and calibration.
        vocabulary_bytes: Of the artifact's encoder and vocabularies, a part of ``artifact_bytes``.
        checkpoint_bytes: Weights in float32, with the encoder and the vocabularies of training.
        artifact_bytes: Weights as the artifact stores them, with its encoder and vocabularies.
        ratio: ``checkpoint_bytes`` divided by ``artifact_bytes``.
        folder_bytes: The artifact with everything else: model card, encoder, state, reference.
        mapped_bytes: Tables in memory, shared by all processes unless packed; ``dense_bytes`` is each process's own.
        active_units: Share of hidden units that are not zero after ReLU or k-winners.
        samples_per_s: Rows per second in training.
        scored_rows_per_s: Encoded rows per second of one process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    auc: float
    auc_interval: tuple[float, float]
    artifact_auc: float
    artifact_auc_interval: tuple[float, float]
    logloss: float
    artifact_logloss: float
    calibration: float
    artifact_calibration: float
    checkpoint_bytes: int
    artifact_bytes: int
    vocabulary_bytes: int
    ratio: float
    folder_bytes: int
    mapped_bytes: int
    dense_bytes: int
    active_units: float
    samples_per_s: float | None
    scored_rows_per_s: float


class MeasuredReport(SizeReport):
    """A size report, with quality, bytes and rates of the whole model as trained and as served."""

    whole: Measured


def measure(run: Path, *, dataset: Path | None = None, overrides: Sequence[str] = ()) -> MeasuredReport:
    """Export ``run`` into a scratch folder and measure it to the end: sizes, bytes on disk, quality, rates.

    Args:
        run: A finished run.
        dataset: Where the run's data set is, if it was moved.
        overrides: ``KEY=VALUE`` of the run's config, to try other levers of export.

    Raises:
        UserError: ``run`` is not a finished run, or its first task is not binary.
    """
    shrunk = shrink_run(run, overrides, dataset=dataset)
    data, before, after = shrunk.data, shrunk.before, shrunk.after
    task, about = next(iter(data.config.tasks.items()))
    if about.kind != "binary":
        raise UserError(f"{run}: the size report compares AUC, and task {task!r} is not binary.")
    split = "test" if data.splits.get("test") else "valid"
    with TemporaryDirectory(dir=run.parent) as scratch:
        artifact = export_shrunk(shrunk, Path(scratch) / "artifact")
        scorer, vocabulary = Scorer(artifact), artifact.bytes_of("encoder.", "vocabularies/")
        loader = Loader(
            data, split, batch_size=_BATCH_ROWS, features=after.schema.feature_names, max_rows=_MEASURED_ROWS
        )
        batches = list(map(Translation(data.encoder, artifact.encoder), loader))
        rate = _scoring_rate(scorer, batches)
        floats = replace(as_served(after), grids={}).to_ranker()
        with torch.inference_mode(), measure_activity(floats) as activity:
            floats(next(iter(loader)))
        artifact_bytes, folder = artifact.model_bytes, artifact.bytes
    whole, served = evaluate(before, data, split), evaluate(as_served(after), data, split)
    checkpoint = checkpoint_bytes(before, data)
    measured = Measured(
        auc=whole.tasks[task]["auc"],
        auc_interval=(whole.intervals[task]["auc"].low, whole.intervals[task]["auc"].high),
        artifact_auc=served.tasks[task]["auc"],
        artifact_auc_interval=(served.intervals[task]["auc"].low, served.intervals[task]["auc"].high),
        logloss=whole.tasks[task]["logloss"],
        artifact_logloss=served.tasks[task]["logloss"],
        calibration=whole.tasks[task]["calibration"],
        artifact_calibration=served.tasks[task]["calibration"],
        checkpoint_bytes=checkpoint,
        artifact_bytes=artifact_bytes,
        vocabulary_bytes=vocabulary,
        ratio=checkpoint / artifact_bytes,
        folder_bytes=folder,
        mapped_bytes=sum(table.rows * row_bytes(table.dim, table.bits) for table in artifact.model.tables.values()),
        dense_bytes=sum(tensor.numel() * tensor.element_size() for tensor in scorer.ranker.dense_state().values()),
        active_units=float(np.mean(list(activity.values()))) if activity else 1.0,
        samples_per_s=_training_rate(run),
        scored_rows_per_s=rate,
    )
    return MeasuredReport(parts=size_report(before, after).parts, whole=measured)


def checkpoint_bytes(weights: Weights, data: Dataset) -> int:
    """Bytes of a checkpoint's weights in float32, with the encoder and the vocabularies that training reads them by."""
    tensors = (*weights.tables.values(), *weights.dense.values())
    encoder = [data.path / "encoder.json", *(data.path / "vocabularies").iterdir()]
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return numbers + sum(file.stat().st_size for file in encoder)


def _scoring_rate(scorer: Scorer, batches: Sequence[Batch]) -> float:
    rows, rates = sum(map(len, batches)), []
    for _ in range(3):
        began = time.perf_counter()
        for batch in batches:
            scorer.logits(batch)
        rates.append(rows / (time.perf_counter() - began))
    return float(np.median(rates))


def _training_rate(run: Path) -> float | None:
    history = pl.read_parquet(run / "metrics.parquet", glob=False).filter(pl.col("metric") == "samples_per_s")
    return None if history.is_empty() else float(history["value"][-1])
