"""The sparsity ledger: what each part of a ranker weighs and computes, before the levers and after.

A lever that only writes zeros shows here: density falls, and bytes and FLOPs stay. Letters: R rows, d stored width of a
table, D its width in the ranker.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from models.codecs.compact import stored_bytes
from models.codecs.quantization import row_bytes
from models.layers.part import Component, ComponentKind
from models.tables.plan import lookup_plan
from models.weights import Weights

Kind = ComponentKind | Literal["table"]


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
    for layout in lookup_plan(before.schema, before.config).tables:
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
    old, new = ({part.name: part for part in weights.dense_ranker().components()} for weights in (before, after))
    sizes = stored_bytes(after.dense, after.precision, after.dense_step)
    for name, part in old.items():
        kept = new.get(name, Component(name, part.kind, {}))
        numbers = sum(tensor.numel() for tensor in part.tensors.values())
        grids = [after.grids[linear] for linear in kept.linears if linear in after.grids]
        yield Part(
            part=name,
            kind=part.kind,
            numbers=numbers,
            density=sum(int(torch.count_nonzero(tensor)) for tensor in kept.tensors.values()) / max(numbers, 1),
            checkpoint_bytes=sum(tensor.numel() * tensor.element_size() for tensor in part.tensors.values()),
            artifact_bytes=round(sum(_share(key, tensor, after, sizes) for key, tensor in kept.tensors.items()))
            + sum(grid.numel() * grid.element_size() for grid in grids),
            flops_before=round(part.flops),
            flops_after=round(kept.flops),
            activations="int8" if grids else None,
        )


def _share(name: str, tensor: Tensor, weights: Weights, sizes: dict[str, int]) -> float:
    """Bytes of a tensor in the artifact; of one expert, its share of the stack."""
    return sizes[name] * tensor.numel() / max(weights.dense[name].numel(), 1)


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


def summary(parts: Sequence[Part], measured: Measured | None = None) -> dict[str, Any]:
    """Parts and total as plain values, for model cards, reports and JSON."""
    result: dict[str, Any] = {"parts": frame(parts).to_dicts()}
    return result if measured is None else result | {"whole": measured.model_dump(mode="json")}
