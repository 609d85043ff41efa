"""From a run directory to an artifact, and the proof that both score alike."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from models.sparsity.config import build_levers
from models.weights import Weights
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.evaluation.evaluate import TaskMetrics, dataset_of, evaluate, task_metrics, users_of
from recsys.export.size_report import ledger, summary
from recsys.runs.checkpoints import CONFIG_FILE, load_weights
from serving.artifact.artifact import Artifact, ModelCard
from serving.artifact.export import export
from serving.artifact.id_remap import Translation
from serving.batch.scorer import Scorer

_CALIBRATION_ROWS = 100_000
_VERSIONS = ("sparse-recsys", "torch", "torchrec", "polars")


def export_run(
    run: Path, out: Path, overrides: Sequence[str] = (), *, dataset: Path | None = None, replace: bool = False
) -> Artifact:
    """Export a finished run, of any rank count and sharding, without a process group.

    Args:
        overrides: ``KEY=VALUE`` of the run's config, such as ``sparsity.quantization.table_bits=4``.
        dataset: Where the run's data set lies by now, if it was moved.

    Raises:
        UserError: ``run`` is not a finished run, a key is unknown, or ``out`` exists and ``replace`` is false.
    """
    if out.exists() and not replace:
        raise UserError(f"{out} already exists: name another path, or remove it first.")
    weights = load_weights(run)
    config = load_config(run / CONFIG_FILE, overrides)
    data = Dataset.open(dataset or dataset_of(run))
    shrunk_weights(weights, config, data)
    sparsity = summary(ledger(load_weights(run), weights))
    export(weights, data, _card(run, config, data, weights, sparsity), config.export, out, replace=replace)
    return Artifact.open(out)


def shrunk_weights(weights: Weights, config: ExperimentConfig, data: Dataset) -> Weights:
    """``weights``, changed in place: every lever has removed what it can."""
    split = "valid" if data.splits.get("valid") else "train"
    kinds = [task.kind for task in data.config.tasks.values()]
    for lever in build_levers(config.sparsity):
        features = weights.schema.feature_names
        rows = Loader(data, split, batch_size=4096, features=features, max_rows=_CALIBRATION_ROWS)
        lever.calibrate(weights, rows, kinds)
        lever.shrink(weights)
    return weights


def _card(run: Path, config: ExperimentConfig, data: Dataset, weights: Weights, sparsity: dict[str, Any]) -> ModelCard:
    metrics = {
        split: evaluate(weights, data, split, draws=0).summary()
        for split in ("valid", "test")
        if data.splits.get(split)
    }
    return ModelCard(
        name=config.name,
        metrics=metrics,
        sparsity=sparsity,
        training={
            "fingerprints": {
                "run": open_directory(run, "run", verify="sizes").fingerprint,
                "dataset": data.manifest.fingerprint,
            },
            "rows": data.splits,
            "features": list(weights.schema.feature_names),
            "config": config.model_dump(mode="json"),
        },
        versions={name: version(name) for name in _VERSIONS},
    )


def verify_artifact(
    artifact: Artifact, run: Path, *, dataset: Path | None = None, rows: int = 50_000, split: str = "test"
) -> dict[str, Any]:
    """Score the same rows with a run and with an artifact of it.

    Returns:
        ``max_difference`` and ``mean_difference`` of the logits; metrics of ``run`` and ``artifact`` (whose binary
        tasks are as the ranker gave them: uncalibrated), by task.

    Raises:
        UserError: The artifact was not exported from this run.
    """
    recorded = artifact.card.training["fingerprints"]["run"]
    if open_directory(run, "run", verify="sizes").fingerprint != recorded:
        raise UserError(f"{artifact.path} was not exported from {run}: name the run it was exported from.")
    data = Dataset.open(dataset or dataset_of(run))
    split = split if data.splits.get(split) else "train"
    weights = load_weights(run)
    loaders = [
        Loader(data, split, batch_size=8192, features=features, max_rows=rows, threads=0)
        for features in (weights.schema.feature_names, artifact.model.encoded.feature_names)
    ]
    translation = Translation(data.encoder, artifact.encoder)
    ranker, scorer = weights.to_ranker(), Scorer(artifact)
    logits: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with torch.inference_mode():
        for ours, theirs in zip(*loaders, strict=True):
            logits[0].append(ranker(ours).numpy())
            logits[1].append(scorer.logits(translation(theirs)))
    run_NT, artifact_NT = map(np.concatenate, logits)
    difference = np.abs(run_NT - artifact_NT)
    return {
        "rows": len(run_NT),
        "split": split,
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "run": _metrics(data, split, run_NT),
        "artifact": _metrics(data, split, artifact_NT),
    }


def _metrics(data: Dataset, split: str, logits_NT: np.ndarray) -> TaskMetrics:
    rows = len(logits_NT)
    labels_NT, users_N = data.labels(split)[:rows], users_of(data, split)
    users_N = None if users_N is None else users_N[:rows]
    return {
        name: task_metrics(task.kind, labels_NT[:, t], logits_NT[:, t], users_N)
        for t, (name, task) in enumerate(data.config.tasks.items())
    }
