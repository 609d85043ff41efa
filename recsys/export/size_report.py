"""The sparsity ledger: what each part of a ranker weighs and computes, before the levers and after.

A lever that only writes zeros shows here: density falls, and bytes and FLOPs stay. Letters: R rows, d stored width of a
table, D its width in the ranker.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from models.codecs.compact import stored_bytes
from models.codecs.quantization import row_bytes
from models.ranker import RankerConfig
from models.sparsity.activations import measure_activity
from models.tables.layout import table_layouts
from models.weights import Weights
from serving.batch.scorer import Scorer

Kind = Literal["table", "layer", "expert", "router", "other"]

_STACK = re.compile(r"(?P<path>.*\.(?P<which>experts|shared))\.w[12]_E\w+")
_MEASURED_ROWS = 50_000
_BATCH_ROWS = 8192


class Part(BaseModel):
    """One line of the ledger.

    Attributes:
        numbers: Of the part in the checkpoint.
        density: Share of them that the artifact keeps and that are not zero.
        checkpoint_bytes: float32, rows of pruned values included.
        artifact_bytes: In the artifact, without vocabulary.
        flops_before: Multiplications and additions a row in training's ranker; of experts, those of the chosen ones.
        flops_after: The same in the artifact's ranker. Scattered zeros do not lower it: they are multiplied too.
        activations: ``int8`` where the artifact's ranker computes the part in whole numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    part: str
    kind: Kind
    numbers: int
    density: float
    checkpoint_bytes: int
    artifact_bytes: int
    flops_before: int
    flops_after: int
    activations: Literal["int8"] | None = None


def ledger(before: Weights, after: Weights) -> list[Part]:
    """Every table, layer, expert and router, ``before`` the levers shrank it and ``after``; what is gone has 0."""
    return [*_tables(before, after), *_dense(before, after)]


def total(parts: Sequence[Part]) -> Part:
    """The line under the others."""
    numbers = sum(part.numbers for part in parts)
    return Part(
        part="total",
        kind="other",
        numbers=numbers,
        density=sum(part.density * part.numbers for part in parts) / max(numbers, 1),
        **{
            name: sum(getattr(part, name) for part in parts)
            for name in ("checkpoint_bytes", "artifact_bytes", "flops_before", "flops_after")
        },
    )


def frame(parts: Sequence[Part]) -> pl.DataFrame:
    """The ledger as a table, with the total as its last row."""
    return pl.DataFrame([part.model_dump() for part in (*parts, total(parts))])


def _tables(before: Weights, after: Weights) -> Iterator[Part]:
    for layout in table_layouts(before.schema, before.config):
        table = before.tables[layout.name]
        kept = after.tables.get(layout.name)
        alive, size, flops = 0, 0, 0
        if kept is not None:
            mask = after.keep.get(layout.vocabulary)
            kept = kept if mask is None else kept[mask]
            alive = int(torch.count_nonzero(kept))
            factor = after.factors.get(layout.name)
            size = len(kept) * row_bytes(kept.shape[1], after.bits.get(layout.name, 32))
            if factor is not None:
                size += stored_bytes({"factor": factor}, after.precision, after.dense_step)["factor"]
                flops = 2 * factor.numel() * len(layout.features)
        yield Part(
            part=layout.name,
            kind="table",
            numbers=table.numel(),
            density=alive / max(table.numel(), 1),
            checkpoint_bytes=table.numel() * table.element_size(),
            artifact_bytes=size,
            flops_before=0,
            flops_after=flops,
        )


def _dense(before: Weights, after: Weights) -> Iterator[Part]:
    old, new = (_groups(weights) for weights in (before, after))
    sizes = stored_bytes(after.dense, after.precision, after.dense_step)
    grids = {name: [grid for layer, grid in after.grids.items() if _module(layer) == name] for name in new}
    for name, tensors in old.items():
        kept = new.get(name, {})
        numbers = sum(tensor.numel() for tensor in tensors.values())
        yield Part(
            part=name,
            kind=_kind(name, tensors),
            numbers=numbers,
            density=sum(int(torch.count_nonzero(tensor)) for tensor in kept.values()) / max(numbers, 1),
            checkpoint_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            artifact_bytes=round(sum(_share(key, tensor, after, sizes) for key, tensor in kept.items()))
            + sum(grid.numel() * grid.element_size() for grid in grids.get(name, [])),
            flops_before=round(sum(_flops(key, tensor, before.config) for key, tensor in tensors.items())),
            flops_after=round(sum(_flops(key, tensor, after.config) for key, tensor in kept.items())),
            activations="int8" if grids.get(name) else None,
        )


def _groups(weights: Weights) -> dict[str, dict[str, Tensor]]:
    """Tensors of the dense part by module; each expert of a stack is a module of its own."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.dense.items():
        stack = _STACK.fullmatch(name)
        if stack is None:
            groups.setdefault(_module(name), {})[name] = tensor
        else:
            for e, expert in enumerate(tensor):
                groups.setdefault(f"{stack['path']}.{e}", {})[name] = expert
    return groups


def _module(name: str) -> str:
    """The layer that a parameter belongs to; a router is one, and so are a low-rank cross layer's thin matrices."""
    layer = re.sub(r"^(interaction\.layers\.\d+|.*\.router)\..*", r"\1", name)
    return layer.removesuffix(".weight").removesuffix(".bias")


def _kind(name: str, tensors: dict[str, Tensor]) -> Kind:
    if any(_STACK.fullmatch(key) for key in tensors):
        return "expert"
    if name.endswith(".router"):
        return "router"
    return "layer" if any(tensor.dim() >= 2 for tensor in tensors.values()) else "other"


def _share(name: str, tensor: Tensor, weights: Weights, sizes: dict[str, int]) -> float:
    """Bytes of a tensor in the artifact; of one expert, its share of the stack."""
    return sizes[name] * tensor.numel() / max(weights.dense[name].numel(), 1)


def _flops(name: str, tensor: Tensor, config: RankerConfig) -> float:
    if tensor.dim() < 2:
        return 0
    stack = _STACK.fullmatch(name)
    if stack is None or stack["which"] == "shared" or config.tower.kind != "moe":
        return 2 * tensor.numel()
    return 2 * tensor.numel() * config.tower.top_k / config.tower.experts


class Measured(BaseModel):
    """What all of a model together does: as trained, and as served.

    Attributes:
        vocabulary_bytes: Of the artifact's encoder and vocabularies, a part of ``artifact_bytes``.
        checkpoint_bytes: Weights in float32 with the encoder and the vocabularies of training.
        artifact_bytes: Weights as the artifact keeps them, with its encoder and vocabularies.
        ratio: Of these two.
        folder_bytes: The artifact with everything else: model card, encoder, state, reference.
        mapped_bytes: Tables in memory, shared by all processes unless packed; ``dense_bytes`` is each process's own.
        active_units: Share of hidden units that are not zero after ReLU or k-winners.
        samples_per_s: Trained on in a second; ``scored_rows_per_s`` of encoded rows, one process.
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


def measure(run: Path, *, dataset: Path | None = None, overrides: Sequence[str] = ()) -> tuple[list[Part], Measured]:
    """Export ``run`` into a scratch folder and measure it to the end: ledger, bytes on disk, quality, rates.

    Raises:
        UserError: ``run`` is not a finished run, or its first task is not binary.
    """
    from recsys.config.experiment import load_config
    from recsys.evaluation.evaluate import dataset_of, evaluate
    from recsys.export.export import export_run, shrunk_weights
    from recsys.runs.checkpoints import CONFIG_FILE, load_weights
    from serving.artifact.export import as_served
    from serving.artifact.id_remap import Translation

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


def summary(parts: Sequence[Part], measured: Measured | None = None) -> dict[str, Any]:
    """Parts and total as plain values, for model cards, reports and JSON."""
    result: dict[str, Any] = {"parts": frame(parts).to_dicts()}
    return result if measured is None else result | {"whole": measured.model_dump(mode="json")}


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
