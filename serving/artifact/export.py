"""Export: makes an artifact from trained weights and their data set."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.features.encoder import Encoder
from models.codecs.quantization import dequantize_rows
from models.tables.id_changes import IdChanges
from models.weights import Weights
from serving.artifact.artifact import (
    compressed_dense,
    in_packing_order,
    served_encoder,
    write_artifact,
)
from serving.artifact.calibration import Calibration, fit_isotonic, fit_platt
from serving.artifact.card import ModelCard
from serving.artifact.drift import fit_reference
from serving.artifact.id_remap import Translation
from serving.artifact.outputs import Outputs
from serving.artifact.weight_files import split_dense
from serving.config import ExportConfig
from serving.formula import Formula


def export(
    weights: Weights,
    dataset: Dataset,
    card: ModelCard,
    config: ExportConfig,
    out: Path,
    *,
    score: Formula | None = None,
    replace: bool = False,
) -> None:
    """Write ``weights``, which the levers have shrunk, as an artifact at ``out``.

    Args:
        score: The formula by which the artifact ranks rows, if there is one.

    Calibration and the drift reference come from the validation split (the training split if there is none), scored
    with quantized weights as in serving; for the drift reference, features that are fixed when serving have those
    values.

    Raises:
        UserError: ``out`` exists and ``replace`` is false, or cannot be written.
    """
    split = "valid" if dataset.splits.get("valid") else "train"
    loader = Loader(
        dataset,
        split,
        batch_size=min(config.sample, dataset.splits[split]),
        features=weights.schema.feature_names,
        max_rows=config.sample,
        threads=0,
    )
    sample = next(iter(loader))
    with torch.inference_mode():
        ranker, asked = as_served(weights).to_ranker(), with_constants(sample, weights.schema, dataset.encoder)
        logits_NT = ranker(sample).numpy()
        asked_NT = logits_NT if asked is sample else ranker(asked).numpy()
    calibration = _calibrate(dataset, sample, logits_NT, config) if config.calibrate and split == "valid" else {}
    encoder = served_encoder(weights, dataset.encoder)
    if config.packed:
        weights, encoder = in_packing_order(weights, encoder)
    translated = Translation(dataset.encoder, encoder)(asked)
    outputs = Outputs(dataset.config.tasks, calibration, config.conditional, score)
    write_artifact(
        weights,
        encoder,
        dataset.path / "state" if encoder.served.past else None,
        card,
        out,
        outputs=outputs,
        reference=fit_reference(encoder.schema, translated, outputs(asked_NT)),
        packed=config.packed,
        replace=replace,
    )


def with_constants(batch: Batch, schema: Schema, encoder: Encoder) -> Batch:
    """``batch`` with the values that features have when serving; ``batch`` itself if none is fixed."""
    ids = served_ids(schema, encoder)
    if not ids:
        return batch
    changes = {name: partial(torch.full_like, fill_value=served) for name, served in ids.items()}
    return IdChanges(batch).change(changes).batch()


def served_ids(schema: Schema, encoder: Encoder) -> dict[str, int]:
    """The ids of the values that features have when serving, by feature; only of those that have one."""
    fixed = [spec.name for spec in schema.sparse if spec.additive]
    if not fixed:
        return {}
    return encoder.as_served().select(fixed).encode(pl.LazyFrame({"row": [0]})).collect().row(0, named=True)


def as_served(weights: Weights) -> Weights:
    """``weights`` after the rounding of the artifact, in tables and matrices."""
    tables = {}
    for name, table in weights.tables.items():
        tables[name] = dequantize_rows(weights.packed_rows(name), weights.bits.get(name, 32), table.shape[1])
    dense = split_dense(compressed_dense(weights))
    return replace(weights, tables=tables, dense=dense.parameters, factors=dense.factors)


def _calibrate(
    dataset: Dataset, sample: Batch, logits_NT: NDArray[np.float32], config: ExportConfig
) -> dict[str, Calibration]:
    """Calibrations of the binary tasks for which the sample has both classes."""
    assert sample.labels is not None
    fit = fit_platt if config.calibration == "platt" else fit_isotonic
    found: dict[str, Calibration] = {}
    for t, (name, task) in enumerate(dataset.config.tasks.items()):
        labels_N = sample.labels[:, t].numpy()
        labelled_N = ~np.isnan(labels_N)
        weights_N = None if sample.weights is None else sample.weights[:, t].numpy()
        if weights_N is not None:
            labelled_N &= weights_N > 0
        if task.kind == "binary" and len(np.unique(labels_N[labelled_N])) == 2:
            counted_N = _as_uniform(labels_N, weights_N, None if sample.log_q is None else sample.log_q[:, t].numpy())
            used = None if counted_N is None else counted_N[labelled_N]
            found[name] = fit(logits_NT[labelled_N, t], labels_N[labelled_N], used)
    return found


def _as_uniform(
    labels_N: NDArray[np.float32], weights_N: NDArray[np.float32] | None, log_q_N: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """(N,) the weights with which negatives are as frequent as if they were drawn uniformly."""
    if log_q_N is None:
        return weights_N
    uniform_N = np.where(labels_N > 0.5, 1.0, np.exp(-log_q_N)).astype(np.float32)
    return uniform_N if weights_N is None else uniform_N * weights_N
