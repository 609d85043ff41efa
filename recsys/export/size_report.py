"""The size report: what each part of a ranker weighs and computes, before the levers and after.

A lever that only writes zeros shows here: density falls, and bytes and FLOPs stay. Letters: R rows, d stored width of a
table, D its width in the ranker.
"""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.codecs.compact import stored_bytes
from models.codecs.quantization import row_bytes
from models.ranker import RankerConfig
from models.tables.layout import table_layouts
from models.weights import Weights
from serving.artifact.card import Kind, Part, SizeReport

_STACK = re.compile(r"(?P<path>.*\.(?P<which>experts|shared))\.w[12]_E\w+")


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
