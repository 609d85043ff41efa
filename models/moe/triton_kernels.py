"""Triton kernels of a sparse mixture: grouped products with fused gather, scale and ReLU.

Every kernel finds its group from offsets on the device, so the CPU never waits for the sizes of groups. Sums run
in a fixed order, without atomics: the same inputs give the same bits. ``models.moe.fused`` composes the kernels, and
``models.moe.dispatch`` is the plain form of the same arithmetic.

Letters: N rows, K groups that a row is in, M slots, E groups, I and O widths.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """What one program computes: rows x outputs, reading ``depth`` of the inner dimension at a time."""

    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int


@triton.jit
def _group_of(tile, ends_E, groups, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Group, first slot and end of the group of a tile of rows; a group past the last for tiles beyond the slots."""
    index = tl.arange(0, GROUPS)
    there = index < groups
    ends = tl.load(ends_E + index, mask=there, other=0)
    starts = tl.load(ends_E + index - 1, mask=there & (index > 0), other=0)
    tiles_end = tl.cumsum(tl.where(there, tl.cdiv(ends - starts, ROWS), 0), 0)
    group = tl.sum((tiles_end <= tile).to(tl.int32), 0)
    first_tile = tl.max(tl.where(tiles_end <= tile, tiles_end, 0), 0)
    start = tl.sum(tl.where(index == group, starts, 0), 0)
    end = tl.sum(tl.where(index == group, ends, 0), 0)
    return group, start + (tile - first_tile) * ROWS, end


@triton.jit
def _tile_product(
    x, rows, weight, columns, inputs, outputs, stride_x, stride_in, stride_out,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(ROWS, OUTPUTS) in float32: rows of ``x`` times columns of one matrix; rows must be valid.

    Masks, not clamps, for columns: they keep loads 16 bytes wide.
    """
    inner = tl.arange(0, DEPTH)
    x_at = x + rows.to(tl.int64)[:, None] * stride_x + inner[None, :]
    weight_at = weight + inner[:, None] * stride_in + columns[None, :] * stride_out
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, inputs, DEPTH):
        left = inputs - start
        x_tile = tl.load(x_at, mask=inner[None, :] < left, other=0.0)
        weight_tile = tl.load(weight_at, mask=(inner < left)[:, None] & (columns < outputs)[None, :], other=0.0)
        total = tl.dot(x_tile, weight_tile, total, input_precision=PRECISION)
        x_at += DEPTH
        weight_at += DEPTH * stride_in
    return total


@triton.jit
def _product_kernel(
    x, source_M, weight_EIO, ends_E, gates_M, out_MO,
    groups, inputs, outputs, stride_x, stride_group, stride_in, stride_out,
    GATHER: tl.constexpr, RELU: tl.constexpr, GATED: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(outputs, OUTPUTS)
    group, first, end = _group_of(tl.program_id(0) // blocks, ends_E, groups, GROUPS, ROWS)
    if group >= groups:
        return
    slots = first + tl.arange(0, ROWS)
    valid = tl.minimum(slots, end - 1)
    rows = tl.load(source_M + valid) if GATHER else valid
    columns = tl.program_id(0) % blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    total = _tile_product(
        x, rows, weight_EIO + group.to(tl.int64) * stride_group, columns,
        inputs, outputs, stride_x, stride_in, stride_out, ROWS, OUTPUTS, DEPTH, PRECISION,
    )  # fmt: skip
    if RELU:
        total = tl.maximum(total, 0.0)
    if GATED:
        total = total * tl.load(gates_M + valid).to(tl.float32)[:, None]
    out_at = out_MO + slots.to(tl.int64)[:, None] * outputs + columns[None, :]
    tl.store(out_at, total.to(out_MO.dtype.element_ty), mask=(slots < end)[:, None] & (columns < outputs)[None, :])


@triton.jit
def _hidden_gradient_kernel(
    grad_NO, source_M, weight_EIO, ends_E, gates_M, hidden_MI, inner_MI, gated_MI, gate_grad_BM,
    slots_count, groups, inputs, outputs, stride_group, stride_in, stride_out,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(inputs, OUTPUTS)
    block = tl.program_id(0) % blocks
    group, first, end = _group_of(tl.program_id(0) // blocks, ends_E, groups, GROUPS, ROWS)
    if group >= groups:
        return
    slots = first + tl.arange(0, ROWS)
    valid = tl.minimum(slots, end - 1)
    columns = block * OUTPUTS + tl.arange(0, OUTPUTS)
    total = _tile_product(
        grad_NO, tl.load(source_M + valid), weight_EIO + group.to(tl.int64) * stride_group,
        columns, outputs, inputs, outputs, stride_out, stride_in,
        ROWS, OUTPUTS, DEPTH, PRECISION,
    )  # fmt: skip
    at = slots.to(tl.int64)[:, None] * inputs + columns[None, :]
    there = (slots < end)[:, None] & (columns < inputs)[None, :]
    hidden = tl.load(hidden_MI + at, mask=there, other=0.0).to(tl.float32)
    gates = tl.load(gates_M + valid).to(tl.float32)[:, None]
    inner = tl.where(hidden > 0, total * gates, 0.0)
    tl.store(inner_MI + at, inner.to(inner_MI.dtype.element_ty), mask=there)
    tl.store(gated_MI + at, (hidden * gates).to(gated_MI.dtype.element_ty), mask=there)
    tl.store(gate_grad_BM + block.to(tl.int64) * slots_count + slots, tl.sum(total * hidden, 1), mask=slots < end)


@triton.jit
def _weight_kernel(
    left, left_source_M, right, right_source_M, ends_E, out_SEIO,
    groups, inputs, outputs, stride_left, stride_right,
    GATHER_LEFT: tl.constexpr, GATHER_RIGHT: tl.constexpr, SPLITS: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(outputs, OUTPUTS)
    group, split = tl.program_id(1) // SPLITS, tl.program_id(1) % SPLITS
    start = tl.load(ends_E + group - 1, mask=group > 0, other=0)
    end = tl.load(ends_E + group)
    share = tl.cdiv(tl.cdiv(end - start, SPLITS), DEPTH) * DEPTH
    first = start + split * share
    stop = tl.minimum(first + share, end)
    columns_I = tl.program_id(0) // blocks * INPUTS + tl.arange(0, INPUTS)
    columns_O = tl.program_id(0) % blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    there_I, there_O = (columns_I < inputs)[None, :], (columns_O < outputs)[None, :]
    total = tl.zeros((INPUTS, OUTPUTS), dtype=tl.float32)
    for slot in range(first, stop, DEPTH):
        slots = slot + tl.arange(0, DEPTH)
        there = (slots < stop)[:, None]
        valid = tl.minimum(slots, stop - 1)
        left_rows = tl.load(left_source_M + valid) if GATHER_LEFT else valid
        right_rows = tl.load(right_source_M + valid) if GATHER_RIGHT else valid
        left_at = left + left_rows.to(tl.int64)[:, None] * stride_left + columns_I[None, :]
        right_at = right + right_rows.to(tl.int64)[:, None] * stride_right + columns_O[None, :]
        left_tile = tl.load(left_at, mask=there & there_I, other=0.0)
        right_tile = tl.load(right_at, mask=there & there_O, other=0.0)
        total = tl.dot(tl.trans(left_tile), right_tile, total, input_precision=PRECISION)
    matrix = (split * groups + group).to(tl.int64) * inputs * outputs
    out_at = out_SEIO + matrix + columns_I[:, None] * outputs + columns_O[None, :]
    tl.store(out_at, total, mask=(columns_I < inputs)[:, None] & (columns_O < outputs)[None, :])


@triton.jit
def _combine_kernel(y_MO, place_NK, out_NO, rows, outputs, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = (row < rows)[:, None] & (columns < outputs)[None, :]
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for k in range(0, K):
        slots = tl.load(place_NK + row.to(tl.int64) * K + k, mask=row < rows, other=0).to(tl.int64)
        total += tl.load(y_MO + slots[:, None] * outputs + columns[None, :], mask=there, other=0.0).to(tl.float32)
    out_at = out_NO + row.to(tl.int64)[:, None] * outputs + columns[None, :]
    tl.store(out_at, total.to(out_NO.dtype.element_ty), mask=there)


def product_tiles(slots: int, groups: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """The tiles of :func:`product` and :func:`hidden_gradients`, from shapes only: a timed choice could change results.

    Args:
        slots: M, of all groups together.
        groups: E.
        outputs: O.
        dtype: Of the rows.
    """
    rows = 128 if slots >= 96 * groups else 64
    wide = min(128, max(16, triton.next_power_of_2(outputs)))
    return Tiles(rows, wide, 128 // dtype.itemsize, 8 if rows * wide >= 128 * 128 else 4, 3)


def weight_tiles(inputs: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """The tiles of :func:`weight_product`; ``rows`` counts rows of the matrix, ``depth`` slots."""
    tall, wide = (min(128, max(16, triton.next_power_of_2(size))) for size in (inputs, outputs))
    return Tiles(tall, wide, 128 // dtype.itemsize, 8 if tall * wide >= 128 * 128 else 4, 3)


def _precision() -> str:
    """The precision of float32 products, as Torch is set to (``set_float32_matmul_precision``)."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _grid(slots: int, groups: int, columns: int, tiles: Tiles) -> tuple[int]:
    """As many programs as could be needed: each group may end within a tile."""
    full = triton.cdiv(slots, tiles.rows) + min(groups, slots)
    return (full * triton.cdiv(columns, tiles.outputs),)


def product(
    x: Tensor,
    weight_EIO: Tensor,
    ends_E: Tensor,
    *,
    source_M: Tensor | None = None,
    gates_M: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """(M, O) each slot's row times the matrix of its group, in the type of ``x``.

    Args:
        x: (M, I), or with ``source_M`` (N, I); the last dimension contiguous.
        weight_EIO: In the type of ``x``, any strides.
        ends_E: End of each group, int32.
        source_M: The row of ``x`` in each slot.
        gates_M: Factor of each slot's result.
        relu: Replace negative results by 0, before gates.
    """
    groups, inputs, outputs = weight_EIO.shape
    slots = len(x) if source_M is None else len(source_M)
    out_MO = x.new_empty(slots, outputs)
    if not slots:
        return out_MO
    tiles = product_tiles(slots, groups, outputs, x.dtype)
    _product_kernel[_grid(slots, groups, outputs, tiles)](
        x, source_M, weight_EIO, ends_E, gates_M, out_MO,
        groups, inputs, outputs, x.stride(0), *weight_EIO.stride(),
        GATHER=source_M is not None, RELU=relu, GATED=gates_M is not None, GROUPS=triton.next_power_of_2(groups),
        ROWS=tiles.rows, OUTPUTS=tiles.outputs, DEPTH=tiles.depth, PRECISION=_precision(),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out_MO


def hidden_gradients(
    grad_NO: Tensor, source_M: Tensor, weight_EIO: Tensor, ends_E: Tensor, gates_M: Tensor, hidden_MI: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of ``gate * (hidden @ weight)`` and of the ReLU that made ``hidden``.

    Returns:
        The gradient (M, I) of the ReLU's input, ``gate * hidden`` (M, I), and the gradient (M,) of gates in float32.
    """
    groups, inputs, outputs = weight_EIO.shape
    slots = len(source_M)
    inner_MI, gated_MI = torch.empty_like(hidden_MI), torch.empty_like(hidden_MI)
    tiles = product_tiles(slots, groups, inputs, grad_NO.dtype)
    gate_grad_BM = grad_NO.new_empty(triton.cdiv(inputs, tiles.outputs), slots, dtype=torch.float32)
    if slots:
        _hidden_gradient_kernel[_grid(slots, groups, inputs, tiles)](
            grad_NO, source_M, weight_EIO, ends_E, gates_M, hidden_MI, inner_MI, gated_MI, gate_grad_BM,
            slots, groups, inputs, outputs, *weight_EIO.stride(), GROUPS=triton.next_power_of_2(groups),
            ROWS=tiles.rows, OUTPUTS=tiles.outputs, DEPTH=tiles.depth, PRECISION=_precision(),
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return inner_MI, gated_MI, gate_grad_BM.sum(0)


def weight_product(
    left: Tensor,
    right: Tensor,
    ends_E: Tensor,
    *,
    left_source_M: Tensor | None = None,
    right_source_M: Tensor | None = None,
) -> Tensor:
    """(E, I, O) float32: the transpose of each group's rows of ``left`` times its rows of ``right``; 0 without rows.

    Args:
        left: (M, I), or with ``left_source_M`` (N, I).
        right: (M, O), or with ``right_source_M`` (N, O).
        ends_E: End of each group, int32.
        left_source_M: The row of ``left`` in each slot.
        right_source_M: The row of ``right`` in each slot.
    """
    groups, inputs, outputs = len(ends_E), left.shape[1], right.shape[1]
    slots = len(left) if left_source_M is None else len(left_source_M)
    tiles = weight_tiles(inputs, outputs, left.dtype)
    blocks = triton.cdiv(inputs, tiles.rows) * triton.cdiv(outputs, tiles.outputs)
    # A few tall groups would leave most of the GPU idle, so each is split, and the parts are added.
    splits = max(1, min(triton.cdiv(264, blocks * groups), slots // (groups * 8 * tiles.depth)))
    out_SEIO = left.new_empty(splits, groups, inputs, outputs, dtype=torch.float32)
    _weight_kernel[blocks, groups * splits](
        left, left_source_M, right, right_source_M, ends_E, out_SEIO,
        groups, inputs, outputs, left.stride(0), right.stride(0),
        GATHER_LEFT=left_source_M is not None, GATHER_RIGHT=right_source_M is not None, SPLITS=splits,
        INPUTS=tiles.rows, OUTPUTS=tiles.outputs, DEPTH=tiles.depth, PRECISION=_precision(),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out_SEIO[0] if splits == 1 else out_SEIO.sum(0)


def combine(y_MO: Tensor, place_NK: Tensor) -> Tensor:
    """(N, O) the sum over the slots of each row, in float32, then in the type of ``y_MO``."""
    (rows, top_k), outputs = place_NK.shape, y_MO.shape[1]
    out_NO = y_MO.new_empty(rows, outputs)
    if rows:
        wide = min(512, triton.next_power_of_2(outputs))
        tall = max(1, 2048 // wide)
        _combine_kernel[triton.cdiv(rows, tall), triton.cdiv(outputs, wide)](
            y_MO, place_NK, out_NO, rows, outputs, K=top_k, ROWS=tall, OUTPUTS=wide, num_warps=4
        )
    return out_NO
