"""Export of a run as an artifact, and the check that both give the same scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from models.sparsity.config import SparsityConfig, build_levers
from models.weights import Weights
from recsys.config.experiment import ExperimentConfig, stored_config
from recsys.evaluation.evaluate import TaskMetrics, dataset_of, evaluate, facts_by_task, predict, task_metrics
from recsys.exporting.size_report import size_report
from recsys.metrics.arrays import Floats
from recsys.metrics.rows import RowFacts
from recsys.runs.checkpoints import CONFIG_FILE, load_weights
from serving.artifact.artifact import Artifact
from serving.artifact.card import ModelCard, TrainingFacts, Value
from serving.artifact.device import DeviceName
from serving.artifact.export import export
from serving.artifact.id_remap import Translation
from serving.batch.scorer import Scorer
from serving.mlflow_model import write_mlflow
from serving.portable.write import write_portable

_BATCH = 8192
_CALIBRATION_ROWS = 100_000
_VERSIONS = ("sparse-recsys", "torch", "torchrec", "polars")


def export_run(
    run: Path, out: Path, overrides: Sequence[str] = (), *, dataset: Path | None = None, replace: bool = False
) -> Artifact:
    """Export a finished run, of any rank count and sharding, without a process group.

    Args:
        run: The run's folder.
        out: Folder of the artifact.
        overrides: ``KEY=VALUE`` of the run's config, such as ``sparsity.quantization.table_bits=4``.
        dataset: Where the run's data set is, if it was moved.
        replace: Whether an artifact at ``out`` may be replaced.

    Raises:
        UserError: ``run`` is not a finished run, a key is unknown, or ``out`` exists and ``replace`` is false.

    Example:
        >>> rs.export(Path("run"), Path("artifact")).encoder.schema.tasks
        ('clicked',)
    """
    _refuse_existing(out, replace)
    return export_shrunk(shrink_run(run, overrides, dataset=dataset), out, replace=replace)


def export_as(
    format: Literal["portable", "onnx", "mlflow"],
    run: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    dataset: Path | None = None,
    replace: bool = False,
) -> None:
    """Export a finished run in one of the formats that are made from an artifact, which exists only meanwhile.

    Args:
        format: What NumPy alone scores, that with a graph for ONNX Runtime, or a model of MLflow.
        run, out, overrides, dataset, replace: As :func:`export_run` takes them.

    Raises:
        UserError: As :func:`export_run` does; the model has a part that the portable scorer does not implement; or a
            package is not installed.
    """
    _refuse_existing(out, replace)
    with TemporaryDirectory() as scratch:
        artifact = export_run(run, Path(scratch) / out.name, overrides, dataset=dataset)
        if format == "mlflow":
            write_mlflow(artifact, out, replace=replace)
        else:
            write_portable(artifact, out, graph=format == "onnx", replace=replace)


@dataclass(frozen=True)
class ShrunkRun:
    """A finished run, read once: its weights before the levers shrank them, and after.

    Attributes:
        run: The run's folder.
        config: The run's config, with the levers that shrank it.
        data: The data set that it was trained on.
        before: The weights as trained.
        after: The weights as exported.
    """

    run: Path
    config: ExperimentConfig
    data: Dataset
    before: Weights
    after: Weights


def shrink_run(run: Path, overrides: Sequence[str] = (), *, dataset: Path | None = None) -> ShrunkRun:
    """Read a finished run and shrink its weights.

    Args:
        run: Its folder.
        overrides: ``KEY=VALUE`` of the run's config, such as ``sparsity.quantization.table_bits=4``.
        dataset: Where the run's data set is, if it was moved.

    Raises:
        UserError: ``run`` is not a finished run, or a key is unknown.
    """
    before = load_weights(run)
    config = stored_config(run / CONFIG_FILE, overrides)
    data = Dataset.open(dataset or dataset_of(run))
    return ShrunkRun(run, config, data, before, shrink(before, config.sparsity, data))


def export_shrunk(shrunk: ShrunkRun, out: Path, *, replace: bool = False) -> Artifact:
    """Write the artifact of a run that was shrunk.

    Raises:
        UserError: ``out`` exists and ``replace`` is false.
    """
    _refuse_existing(out, replace)
    config = shrunk.config
    export(shrunk.after, shrunk.data, _card(shrunk), config.export, out, score=config.formula, replace=replace)
    return Artifact.open(out)


def shrink(weights: Weights, sparsity: SparsityConfig, data: Dataset) -> Weights:
    """The weights after all levers; ``weights`` do not change.

    Args:
        weights: The trained weights.
        sparsity: The levers.
        data: Levers calibrate on rows of its valid split, or of the train split if there is none.
    """
    shrunk = dataclasses.replace(  # levers replace tensors and never write into them
        weights,
        tables=dict(weights.tables),
        dense=dict(weights.dense),
        keep=dict(weights.keep),
        factors=dict(weights.factors),
        bits=dict(weights.bits),
        steps=dict(weights.steps),
        grids=dict(weights.grids),
    )
    split = "valid" if data.splits.get("valid") else "train"
    kinds = [task.kind for task in data.config.tasks.values()]
    for lever in build_levers(sparsity):
        features = shrunk.schema.feature_names
        rows = Loader(data, split, batch_size=4096, features=features, max_rows=_CALIBRATION_ROWS)
        lever.calibrate(shrunk, rows, kinds)
        lever.shrink(shrunk)
    return shrunk


def _refuse_existing(out: Path, replace: bool) -> None:
    if out.exists() and not replace:
        raise UserError(f"{out} already exists: name another path, or remove it first.")


def _card(shrunk: ShrunkRun) -> ModelCard:
    data, weights = shrunk.data, shrunk.after
    metrics = {
        split: evaluate(weights, data, split, draws=0, score=shrunk.config.formula).summary()
        for split in ("valid", "test")
        if data.splits.get(split)
    }
    training = TrainingFacts(
        fingerprints={
            "run": open_directory(shrunk.run, "run", verify="sizes").fingerprint,
            "dataset": data.manifest.fingerprint,
        },
        rows=data.splits,
        features=list(weights.schema.feature_names),
        config=shrunk.config.model_dump(mode="json"),
    )
    return ModelCard(
        name=shrunk.config.name,
        metrics=metrics,
        sparsity=size_report(shrunk.before, weights),
        training=training,
        versions={name: version(name) for name in _VERSIONS},
    )


class Verification(BaseModel):
    """How much the logits of an artifact differ from those of its run, on the same rows.

    Attributes:
        rows: How many rows were scored.
        split: Where they are from.
        max_difference: Largest absolute difference of two logits.
        mean_difference: Mean absolute difference.
        run: Metrics of the run by task.
        artifact: Metrics of the artifact by task, without the calibration of binary tasks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    split: str
    max_difference: float
    mean_difference: float
    run: dict[str, dict[str, Value]]
    artifact: dict[str, dict[str, Value]]


def verify_artifact(
    artifact: Artifact,
    run: Path,
    *,
    dataset: Path | None = None,
    rows: int = 50_000,
    split: str = "test",
    device: DeviceName = "cpu",
) -> Verification:
    """Score the same rows with a run and with an artifact of it.

    Args:
        artifact: The artifact.
        run: The run that it was exported from.
        dataset: Where the run's data set is, if it was moved.
        rows: How many rows to score, from the beginning of the split.
        split: The split; the train split if it has no rows.
        device: Where the artifact is scored, as in :class:`~serving.batch.scorer.Scorer`; the run is on the CPU.

    Raises:
        UserError: There is no such device, or the artifact was not exported from this run.

    Example:
        >>> rs.verify_artifact(rs.Artifact.open(Path("artifact")), Path("run")).rows
        60
    """
    data = Dataset.open(dataset or dataset_of(run))
    split = split if data.splits.get(split) else "train"
    return compare_with_run(artifact, run, data, split, max_rows=rows, device=device)[0]


def compare_with_run(
    artifact: Artifact,
    run: Path,
    data: Dataset,
    split: str,
    *,
    max_rows: int | None = None,
    device: DeviceName = "cpu",
) -> tuple[Verification, NDArray[np.float32]]:
    """As :func:`verify_artifact`, with an opened data set; also returns the (N, T) logits of the artifact.

    Raises:
        UserError: The artifact was not exported from this run.
    """
    recorded = artifact.card.training.fingerprints.get("run")
    if open_directory(run, "run", verify="sizes").fingerprint != recorded:
        raise UserError(f"{artifact.path} was not exported from {run}: name the run it was exported from.")
    weights = load_weights(run)
    features = weights.schema.feature_names
    batches = Loader(data, split, batch_size=_BATCH, features=features, max_rows=max_rows, threads=0)
    run_NT = predict(weights.to_ranker(), batches, torch.device("cpu"))[1].numpy()
    artifact_NT = artifact_logits(artifact, data, split, max_rows=max_rows, device=device)
    difference = np.abs(run_NT - artifact_NT)
    labels_NT, facts = data.labels(split), facts_by_task(data, split)
    verification = Verification(
        rows=len(run_NT),
        split=split,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        run=_metrics(data, run_NT, labels_NT, facts),
        artifact=_metrics(data, artifact_NT, labels_NT, facts),
    )
    return verification, artifact_NT


def artifact_logits(
    artifact: Artifact, data: Dataset, split: str, *, max_rows: int | None = None, device: DeviceName = "cpu"
) -> NDArray[np.float32]:
    """(N, T) logits of the labels of ``split`` with an artifact, or of its first ``max_rows`` rows.

    Args:
        data: The data set that the artifact was made from, or one that extends it: values that are new there are
            unknown to the artifact.
    """
    features = artifact.model.encoded.feature_names
    batches = Loader(data, split, batch_size=_BATCH, features=features, max_rows=max_rows, threads=0)
    translation, scorer = Translation(data.encoder, artifact.encoder), Scorer(artifact, device=device)
    logits = ((batch, torch.from_numpy(scorer.logits(translation(batch)))) for batch in batches)
    return np.concatenate([batch.of_sample(logits_BT).numpy() for batch, logits_BT in logits])


def _metrics(data: Dataset, logits_NT: Floats, labels_NT: Floats, facts: Mapping[str, RowFacts]) -> TaskMetrics:
    rows = len(logits_NT)
    return {
        name: task_metrics(task.kind, labels_NT[:rows, t], logits_NT[:, t], facts[name].take(slice(rows)))
        for t, (name, task) in enumerate(data.config.tasks.items())
    }
