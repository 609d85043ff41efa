"""What the levers did to a run, measured to the end: quality, bytes on disk and in memory, rates."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from models.codecs.quantization import row_bytes
from models.sparsity.activations import measure_activity
from models.weights import Weights
from recsys.config.experiment import load_config
from recsys.evaluation.evaluate import dataset_of, evaluate
from recsys.export.export import export_run, shrunk_weights
from recsys.export.size_report import Measured, Part, ledger
from recsys.runs.checkpoints import CONFIG_FILE, load_weights
from serving.artifact.export import as_served
from serving.artifact.id_remap import Translation
from serving.batch.scorer import Scorer

_MEASURED_ROWS = 50_000
_BATCH_ROWS = 8192


def measure(run: Path, *, dataset: Path | None = None, overrides: Sequence[str] = ()) -> tuple[list[Part], Measured]:
    """Export ``run`` into a scratch folder and measure it to the end: ledger, bytes on disk, quality, rates.

    Raises:
        UserError: ``run`` is not a finished run, or its first task is not binary.
    """
    config = load_config(run / CONFIG_FILE, overrides)
    data = Dataset.open(dataset or dataset_of(run))
    split = "test" if data.splits.get("test") else "valid"
    before, after = load_weights(run), load_weights(run)
    shrunk_weights(after, config, data)
    with TemporaryDirectory(dir=run.parent) as scratch:
        artifact = export_run(run, Path(scratch) / "artifact", overrides, dataset=data.path)
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
    parts = ledger(before, after)
    whole, served = evaluate(before, data, split), evaluate(as_served(after), data, split)
    task = next(iter(whole.tasks))
    if "auc" not in whole.tasks[task]:
        raise UserError(f"{run}: the ledger compares AUC, and task {task!r} is not binary.")
    checkpoint = checkpoint_bytes(before, data)
    return parts, Measured(
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
    history = pl.read_parquet(run / "metrics.parquet").filter(pl.col("metric") == "samples_per_s")
    return None if history.is_empty() else float(history["value"][-1])
