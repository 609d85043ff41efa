"""How the dense part is stored in an artifact: few bits per value; zeros are not stored.

Matrices are stored as bf16, or as int8 or int4 codes with one float32 scale per output row; their biases are stored as
bf16. Everything else is stored as it is, and so are routers (a rounded router sends rows to other experts). If enough
values of a tensor are zero, it is stored as a bitmap of the others and their values, so that a pruned weight takes one
bit.

A tensor ``name`` is stored under ``name``; ``name:scale``, ``name:bitmap`` and ``name:shape`` are optional.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "int8", "int4"]

_SCALE, _BITMAP, _SHAPE = ":scale", ":bitmap", ":shape"
_LARGEST_CODE: dict[str, int] = {"int8": 127, "int4": 7}
_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.int8: 8}


def compress(dense: Mapping[str, Tensor], precision: Precision, step: float | None = None) -> dict[str, Tensor]:
    """``dense`` in few bytes; :func:`decompress` is the inverse, up to the rounding of ``precision``.

    Args:
        step: With int8: one scale for the whole matrix, as a multiple of its root mean square. Most codes are then
            small, which saves bytes when they are packed; zeros stay zero.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in dense.items():
        router = "router" in name.split(".")
        if not tensor.is_floating_point() or tensor.dim() < 2 or router:
            bias = name.endswith(".bias") and precision != "fp32" and not router
            packed[name] = tensor.bfloat16() if bias else tensor.contiguous()
            continue
        values, scale = _round(tensor.contiguous(), precision, step)
        if scale is not None:
            packed[name + _SCALE] = scale
        bits = 4 if precision == "int4" else _BITS[values.dtype]
        alive = values.flatten() != 0
        sparse = step is None and bits * int(alive.sum()) + alive.numel() < bits * alive.numel()
        if sparse:
            packed[name + _BITMAP] = _pack_bits(alive)
            values = values.flatten()[alive]
        if sparse or precision == "int4":
            packed[name + _SHAPE] = torch.tensor(tensor.shape)
        packed[name] = _pack_nibbles(values.flatten()) if precision == "int4" else values
    return packed


def decompress(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that :func:`compress` got; rounded ones are float32.

    Raises:
        ValueError: A shape asks for more numbers than are stored.
    """
    dense: dict[str, Tensor] = {}
    for name, stored in packed.items():
        if name.endswith((_SCALE, _BITMAP, _SHAPE)):
            continue
        values, shape = stored, packed.get(name + _SHAPE)
        if shape is not None:
            numbers = math.prod(shape.tolist())
            bitmap = packed.get(name + _BITMAP)
            held = 2 * stored.numel() if bitmap is None else 8 * bitmap.numel()
            if min(shape.tolist(), default=0) < 0 or numbers > held:
                raise ValueError(f"{name} has shape {shape.tolist()}, which is more than is stored")
            alive = None if bitmap is None else _unpack_bits(bitmap, numbers)
            if values.dtype == torch.uint8:
                values = _unpack_nibbles(values, numbers if alive is None else int(alive.sum()))
            if alive is not None:
                values = torch.zeros(numbers, dtype=values.dtype).masked_scatter_(alive, values)
            values = values.view(*shape.tolist())
        if name + _SCALE in packed:
            values = values.float() * packed[name + _SCALE]
        dense[name] = values.float() if values.is_floating_point() else values
    return dense


def stored_bytes(dense: Mapping[str, Tensor], precision: Precision, step: float | None = None) -> dict[str, int]:
    """Bytes that each tensor takes in an artifact, with its scale, bitmap and shape."""
    sizes = dict.fromkeys(dense, 0)
    for name, tensor in compress(dense, precision, step).items():
        for suffix in (_SCALE, _BITMAP, _SHAPE):
            name = name.removesuffix(suffix)
        sizes[name] += tensor.numel() * tensor.element_size()
    return sizes


def _round(tensor: Tensor, precision: Precision, step: float | None) -> tuple[Tensor, Tensor | None]:
    if precision == "fp32":
        return tensor, None
    if precision == "bf16":
        return tensor.bfloat16(), None
    largest = _LARGEST_CODE[precision]
    if step is None:
        scale = tensor.abs().amax(-1, keepdim=True) / largest
    else:
        scale = (step * tensor.square().mean().sqrt()).view([1] * tensor.dim())
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    return (tensor / scale).round().clamp(-largest, largest).to(torch.int8), scale


def _pack_bits(mask_N: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(mask_N.to(torch.uint8), (0, -len(mask_N) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpack_bits(packed: Tensor, count: int) -> Tensor:
    return ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:count].bool()


def _pack_nibbles(codes_N: Tensor) -> Tensor:
    pairs = torch.nn.functional.pad(codes_N + 8, (0, len(codes_N) % 2)).to(torch.uint8).view(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def _unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    codes = torch.stack([packed & 15, packed >> 4], 1).flatten()[:count]
    return codes.to(torch.int8) - 8
