"""Row-wise quantization of embedding tables in FBGEMM's layout, and how many bits each table gets.

A row of a packed table is ``[scale fp16][bias fp16][codes]`` for 8, 4 and 2 bits (the first element of a byte in its
low bits) and plain little-endian floats for 32 and 16. That is what FBGEMM's
``int_nbit_split_embedding_codegen_lookup_function`` reads on a CPU (row alignment 1). An element is
``code * scale + bias``.

Letters: R rows, d embedding dimension, W bytes of a packed row.
"""

import heapq
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from data_pipelines.errors import UserError

Bits = Literal[32, 16, 8, 4, 2]
BITS: tuple[Bits, ...] = (32, 16, 8, 4, 2)
_CHUNK_ROWS = 1 << 12
_SCALE_BIAS_BYTES = 4
_WORTH_LEAVING = 0.75


def padded_dim(dim: int, bits: int) -> int:
    """Elements of a packed row: ``dim`` rounded up to a whole byte of codes."""
    per_byte = max(8 // bits, 1)
    return -(-dim // per_byte) * per_byte


def row_bytes(dim: int, bits: int) -> int:
    """W, the bytes of one packed row."""
    payload = padded_dim(dim, bits) * bits // 8
    return payload if bits >= 16 else payload + _SCALE_BIAS_BYTES


def narrowest(dim: int, bits: Bits) -> Bits:
    """``bits``, or 16 if rows are so narrow that scale and bias would take more than fewer bits save."""
    return 16 if bits < 16 and row_bytes(dim, 16) <= row_bytes(dim, bits) else bits


def quantize_rows(weight_Rd: Tensor, bits: Bits, *, clip: bool = False, step: float | None = None) -> Tensor:
    """Quantize a float32 table row by row.

    Args:
        bits: 32, 16, 8, 4 or 2.
        clip: Search a tighter range for each row that lowers its squared error (:func:`clipped_range`).
        step: With 8 bits: one scale for all rows (:func:`common_step`).

    Returns:
        (R, W) uint8.
    """
    assert bits in BITS, bits
    weight_Rd = weight_Rd.detach().float().contiguous()
    if bits == 32:
        return weight_Rd.view(torch.uint8)
    if bits == 16:
        return weight_Rd.half().view(torch.uint8)
    if step is not None:
        assert bits == 8, bits
        return _pack_grid(weight_Rd, step)
    if len(weight_Rd) == 0:
        return torch.empty(0, row_bytes(weight_Rd.shape[1], bits), dtype=torch.uint8)
    return torch.cat([_pack_codes(chunk, bits, clip) for chunk in torch.split(weight_Rd, _CHUNK_ROWS)])


def dequantize_rows(packed_RW: Tensor, bits: Bits, dim: int) -> Tensor:
    """The (R, dim) float32 table that a lookup of ``packed_RW`` sees."""
    if bits == 32:
        return packed_RW.contiguous().view(torch.float32)
    if bits == 16:
        return packed_RW.contiguous().view(torch.float16).float()
    scale_bias_R2 = (
        packed_RW[:, :_SCALE_BIAS_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    )
    codes_RW = packed_RW[:, _SCALE_BIAS_BYTES:]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes_Rd = ((codes_RW.unsqueeze(2) >> shifts) & (2**bits - 1)).flatten(1)[:, :dim].float()
    weight_Rd: Tensor = codes_Rd * scale_bias_R2[:, :1] + scale_bias_R2[:, 1:]
    return weight_Rd


def _pack_codes(weight_Rd: Tensor, bits: int, clip: bool) -> Tensor:
    low_R, high_R = clipped_range(weight_Rd, bits) if clip else (weight_Rd.amin(1), weight_Rd.amax(1))
    scale_R, bias_R = _scale_bias(low_R, high_R, bits)
    codes_Rd = _codes(weight_Rd, scale_R, bias_R, bits).to(torch.uint8)
    missing = padded_dim(weight_Rd.shape[1], bits) - weight_Rd.shape[1]
    codes_Rd = torch.nn.functional.pad(codes_Rd, (0, missing))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    payload_RW = (codes_Rd.reshape(len(codes_Rd), -1, 8 // bits) << shifts).sum(2, dtype=torch.uint8)
    scale_bias = torch.stack([scale_R, bias_R], 1).half().view(torch.uint8)
    return torch.cat([scale_bias, payload_RW], 1)


def common_step(weight_Rd: Tensor, relative: float) -> float:
    """``relative`` times the root mean square of the table, as the float16 number that is stored.

    Once codes are entropy-coded, as packing does, uniform steps need the fewest bits for their squared error: rows
    close to zero have small codes, which take few bits (Gish & Pierce, *Asymptotically efficient quantizing*, 1968).
    """
    size = float(weight_Rd.square().mean().sqrt()) if weight_Rd.numel() else 0.0
    return float(torch.tensor(relative * size).half().clamp_min(torch.finfo(torch.float16).smallest_normal))


def _pack_grid(weight_Rd: Tensor, step: float) -> Tensor:
    codes_Rd = ((weight_Rd / step).round().clamp(-128, 127) + 128).to(torch.uint8)
    scale_bias = torch.tensor([step, -128 * step]).half().view(torch.uint8)
    return torch.cat([scale_bias.expand(len(codes_Rd), -1), codes_Rd], 1)


def _scale_bias(low_R: Tensor, high_R: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and bias as their fp16 values, so that codes are chosen for the numbers that are stored."""
    bias_R = low_R.half().float()
    scale_R = ((high_R - bias_R) / (2**bits - 1)).half().float()
    return torch.where(scale_R > 0, scale_R, 1.0), bias_R


def _codes(weight_Rd: Tensor, scale_R: Tensor, bias_R: Tensor, bits: int) -> Tensor:
    return ((weight_Rd - bias_R[:, None]) / scale_R[:, None]).round().clamp(0, 2**bits - 1)


def _round_trip(weight_Rd: Tensor, low_R: Tensor, high_R: Tensor, bits: int) -> Tensor:
    scale_R, bias_R = _scale_bias(low_R, high_R, bits)
    return _codes(weight_Rd, scale_R, bias_R, bits) * scale_R[:, None] + bias_R[:, None]


def clipped_range(weight_Rd: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A range for each row that quantizes it with less squared error than its minimum and maximum.

    The greedy search of post-training 4-bit quantization (Guan et al., 1911.02079): step by step either the lower
    or the upper end moves inwards, whichever leaves the smaller error, and the best range so far is kept. Fewer bits
    gain more from a tighter range, so the search is longer for them.

    A row leaves the search as soon as clipping its two extremes alone would cost more than its best range so far. With
    8 bits and up to a hundred columns that is nearly always before the first step.

    Returns:
        (R,) lower and (R,) upper ends.
    """
    low_R, high_R = weight_Rd.amin(1), weight_Rd.amax(1)
    steps, reach = (8, 0.1) if bits == 8 else (24, 0.4) if bits == 4 else (32, 0.8)
    best_low_R, best_high_R = low_R.clone(), high_R.clone()
    rows, low, high, weight = torch.arange(len(low_R)), low_R, high_R, weight_Rd  # the rows that are still searched
    stride, best = (high - low) * (reach / steps), _range_error(weight, low, high, bits)
    # How far a range can reach beyond its end, because its scale and bias are rounded to float16.
    slack = (low.abs() + high.abs()) * 2.0**-10 + 2.0 ** (bits - 24)
    for step in range(1, steps + 1):
        least = sum((moves * stride - slack).clamp_min(0).square() for moves in (step // 2, step - step // 2))
        open_ = best > least
        if int(open_.sum()) <= _WORTH_LEAVING * len(rows):  # otherwise copying the rest takes longer than searching all
            rows, low, high, weight, stride, best, slack = (
                part[open_] for part in (rows, low, high, weight, stride, best, slack)
            )
        if not len(rows):
            break
        up = _range_error(weight, low + stride, high, bits)
        down = _range_error(weight, low, high - stride, bits)
        low, high = torch.where(up <= down, low + stride, low), torch.where(up <= down, high, high - stride)
        error = torch.minimum(up, down)
        better = error < best
        best_low_R[rows[better]], best_high_R[rows[better]] = low[better], high[better]
        best = torch.where(better, error, best)
    return best_low_R, best_high_R


def _range_error(weight_Rd: Tensor, low_R: Tensor, high_R: Tensor, bits: int) -> Tensor:
    """(R,) squared error of rows that are rounded in these ranges."""
    return (_round_trip(weight_Rd, low_R, high_R, bits) - weight_Rd).square().sum(1)


def fake_quantize(weight_Rd: Tensor, bits: int) -> Tensor:
    """The rows after quantization, with a straight-through gradient (arXiv 1308.3432)."""
    if bits == 32:
        return weight_Rd
    with torch.no_grad():
        rounded = (
            weight_Rd.half().float()
            if bits == 16
            else _round_trip(weight_Rd, weight_Rd.amin(1), weight_Rd.amax(1), bits)
        )
    return weight_Rd + (rounded - weight_Rd).detach()


def choose_bits(
    tables: Mapping[str, Tensor], budget: int, *, importance: Mapping[str, Tensor] | None = None, lowest: Bits = 2
) -> dict[str, Bits]:
    """Bits for each table so that all packed tables together fit into ``budget`` bytes.

    Every table starts at 32 bits; the step to fewer bits that adds the least squared error per byte saved is taken
    until the budget holds. ``importance`` weighs the rows (R,) of a table, such as how often each is looked up.

    Raises:
        UserError: Not even ``lowest`` bits everywhere fit.
    """
    ladder = [bits for bits in BITS if bits >= lowest]
    chosen = dict.fromkeys(tables, 0)
    errors = {name: _errors(table, ladder, (importance or {}).get(name)) for name, table in tables.items()}
    total = sum(len(table) * row_bytes(table.shape[1], 32) for table in tables.values())

    def offer(name: str) -> tuple[float, str, int]:
        at, (rows, dim) = chosen[name], tables[name].shape
        saved = rows * (row_bytes(dim, ladder[at]) - row_bytes(dim, ladder[at + 1]))
        return (errors[name][at + 1] - errors[name][at]) / max(saved, 1), name, saved

    offers = [offer(name) for name in tables]
    heapq.heapify(offers)
    while total > budget:
        if not offers:
            raise UserError(
                f"sparsity.quantization.byte_budget={budget} cannot be met: {lowest} bits in every table still take "
                f"{total} bytes. Prune rows, lower the embedding dimension, or raise the budget."
            )
        _, name, saved = heapq.heappop(offers)
        total -= saved
        chosen[name] += 1
        if chosen[name] + 1 < len(ladder):
            heapq.heappush(offers, offer(name))
    return {name: ladder[at] for name, at in chosen.items()}


def _errors(table_Rd: Tensor, ladder: list[Bits], importance_R: Tensor | None) -> list[float]:
    """Squared error of a table at each rung of ``ladder``, rows weighed by their importance."""
    result = []
    for bits in ladder:
        error_R = (dequantize_rows(quantize_rows(table_Rd, bits), bits, table_Rd.shape[1]) - table_Rd).square().sum(1)
        result.append(float((error_R if importance_R is None else error_R * importance_R).sum()))
    return result
