"""The size report: bytes and FLOPs of each part of a ranker, before and after the levers.

A lever that only writes zeros lowers density, but neither bytes nor FLOPs. Letters: R rows, d stored width of a
table, D its width in the ranker.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.codecs.compact import stored_bytes
from models.codecs.quantization import row_bytes
from models.layers.part import Component
from models.tables.plan import lookup_plan
from models.weights import Weights
from serving.artifact.card import Part, SizeReport


def size_report(before: Weights, after: Weights) -> SizeReport:
    """Every table, layer, expert and router, ``before`` the levers shrank the weights and ``after``; the total last.

    A part that is gone has 0 artifact bytes and FLOPs. Neither argument is changed.
    """
    parts = [*_tables(before, after), *_dense(before, after)]
    return SizeReport(parts=(*parts, _total(parts)))


def _total(parts: Sequence[Part]) -> Part:
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
