"""Packing of tables against FBGEMM's own lookup, and the search for ranges and bits."""

import fbgemm_gpu  # noqa: F401
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    EmbeddingLocation,
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from models.codecs.quantization import (
    Bits,
    choose_bits,
    clipped_range,
    common_step,
    dequantize_rows,
    fake_quantize,
    narrowest,
    quantize_rows,
    row_bytes,
)

KERNEL_TYPES = {32: SparseType.FP32, 16: SparseType.FP16, 8: SparseType.INT8, 4: SparseType.INT4, 2: SparseType.INT2}


def table(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) * 0.1


def looked_up(packed: torch.Tensor, dim: int, bits: Bits) -> torch.Tensor:
    """The reference: FBGEMM's module over the packed bytes."""
    spec = ("table", len(packed), dim, KERNEL_TYPES[bits], EmbeddingLocation.HOST)
    module = IntNBitTableBatchedEmbeddingBagsCodegen([spec], device="cpu", output_dtype=SparseType.FP32)
    module.initialize_weights()
    module.split_embedding_weights(split_scale_shifts=False)[0][0].copy_(packed)
    ids = torch.arange(len(packed), dtype=torch.int32)
    rows: torch.Tensor = module(ids, torch.arange(len(packed) + 1, dtype=torch.int32))
    return rows


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), quads=st.integers(1, 9), bits=st.sampled_from([32, 16, 8, 4, 2]), clip=st.booleans())
def test_fbgemm_reads_what_is_packed(rows: int, quads: int, bits: Bits, clip: bool) -> None:
    weight = table(rows, 4 * quads, seed=rows)
    packed = quantize_rows(weight, bits, clip=clip)
    assert packed.shape == (rows, row_bytes(4 * quads, bits))
    assert torch.equal(looked_up(packed, 4 * quads, bits), dequantize_rows(packed, bits, 4 * quads))


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15), (2, 3)])
def test_error_is_at_most_half_a_code(bits: Bits, levels: int) -> None:
    weight = table(200, 10)
    error = (dequantize_rows(quantize_rows(weight, bits), bits, 10) - weight).abs()
    code = (weight.amax(1) - weight.amin(1)) / levels
    assert bool((error <= 0.51 * code[:, None] + 1e-3).all())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_constant_row_survives(bits: Bits) -> None:
    weight = torch.full((3, 8), 0.25)
    assert torch.equal(dequantize_rows(quantize_rows(weight, bits, clip=True), bits, 8), weight)


def full_search(weight_Rd: torch.Tensor, bits: Bits) -> tuple[torch.Tensor, torch.Tensor]:
    """The greedy search to its end, for every row."""

    def error(low_R: torch.Tensor, high_R: torch.Tensor) -> torch.Tensor:
        bias_R1 = low_R.half().float()[:, None]
        scale_R1 = ((high_R[:, None] - bias_R1) / (2**bits - 1)).half().float()
        scale_R1 = torch.where(scale_R1 > 0, scale_R1, 1.0)
        codes_Rd = ((weight_Rd - bias_R1) / scale_R1).round().clamp(0, 2**bits - 1)
        return (codes_Rd * scale_R1 + bias_R1 - weight_Rd).square().sum(1)

    low_R, high_R = weight_Rd.amin(1), weight_Rd.amax(1)
    steps, reach = {8: (8, 0.1), 4: (24, 0.4), 2: (32, 0.8)}[bits]
    stride_R = (high_R - low_R) * (reach / steps)
    found = low_R, high_R, error(low_R, high_R)
    for _ in range(steps):
        up_R, down_R = error(low_R + stride_R, high_R), error(low_R, high_R - stride_R)
        low_R, high_R = (
            torch.where(up_R <= down_R, low_R + stride_R, low_R),
            torch.where(up_R <= down_R, high_R, high_R - stride_R),
        )
        now = low_R, high_R, torch.minimum(up_R, down_R)
        found = tuple(torch.where(now[2] < found[2], new, old) for new, old in zip(now, found, strict=True))
    return found[0], found[1]


@settings(max_examples=15, deadline=None)
@given(
    dim=st.integers(1, 80),
    bits=st.sampled_from([8, 4, 2]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 100.0]),
    offset=st.sampled_from([0.0, 5.0]),
    shape=st.sampled_from(["normal", "heavy tails", "mostly zero"]),
    seed=st.integers(0, 999),
)
def test_rows_leave_the_search_only_when_it_would_find_nothing_more(
    dim: int, bits: Bits, scale: float, offset: float, shape: str, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(64, dim)
    if shape == "heavy tails":
        weight = weight * torch.randn(64, dim).abs() ** 3
    elif shape == "mostly zero":
        weight = weight * (torch.rand(64, dim) < 0.1)
    weight = weight * scale + offset * torch.randn(64, 1)
    for ours, theirs in zip(clipped_range(weight, bits), full_search(weight, bits), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [4, 2])
def test_clipping_search_lowers_the_error_of_every_row(bits: Bits) -> None:
    weight = table(300, 32)
    plain, clipped = (
        (dequantize_rows(quantize_rows(weight, bits, clip=clip), bits, 32) - weight).square().sum(1)
        for clip in (False, True)
    )
    assert bool((clipped <= plain + 1e-9).all())
    assert clipped.sum() < 0.9 * plain.sum()


def test_rows_on_one_grid_share_scale_and_bias_and_are_half_a_step_off_at_most() -> None:
    weight = table(300, 16)
    step = common_step(weight, 0.5)
    packed = quantize_rows(weight, 8, step=step)
    assert len(packed[:, :4].unique(dim=0)) == 1
    assert torch.equal(looked_up(packed, 16, 8), dequantize_rows(packed, 8, 16))
    assert float((dequantize_rows(packed, 8, 16) - weight).abs().max()) <= 0.5001 * step
    assert step == pytest.approx(0.5 * float(weight.square().mean().sqrt()), rel=1e-3)


def test_narrow_rows_have_sixteen_bits_where_fewer_save_nothing() -> None:
    assert [narrowest(dim, 4) for dim in (1, 2, 3, 4)] == [16, 16, 16, 4]
    assert narrowest(1, 32) == 32


def test_fake_quantization_is_the_lookup_with_a_straight_gradient() -> None:
    weight = table(20, 16).requires_grad_()
    seen = fake_quantize(weight, 4)
    assert torch.allclose(seen, dequantize_rows(quantize_rows(weight, 4), 4, 16), atol=1e-7)
    seen.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.15, 1.0))
def test_chosen_bits_fit_the_budget_and_spend_it_where_it_matters(share: float) -> None:
    tables = {"coarse": table(100, 16) * 10, "fine": table(100, 16) * 0.1}
    budget = int(share * 2 * 100 * 64)
    bits = choose_bits(tables, budget)
    assert sum(100 * row_bytes(16, n) for n in bits.values()) <= budget
    assert bits["coarse"] >= bits["fine"]


def test_rows_that_are_looked_up_more_often_get_more_bits() -> None:
    tables = {"a": table(50, 16, seed=1), "b": table(50, 16, seed=1)}
    bits = choose_bits(tables, 50 * (12 + 20), importance={"a": torch.full((50,), 9.0)})
    assert bits["a"] > bits["b"]


def test_a_budget_that_nothing_meets_is_refused() -> None:
    with pytest.raises(UserError, match="byte_budget=100 "):
        choose_bits({"a": table(50, 16)}, 100)
