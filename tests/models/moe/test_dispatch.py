"""Grouped products and their slots against a loop over rows."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.moe.dispatch import DispatchPlan, combine, dispatch, grouped_product, plan_dispatch, plan_runs


def choices(counts: list[int], top_k: int) -> tuple[Tensor, Tensor]:
    """Groups (N, K) of shuffled rows, where group e comes ``counts[e]`` times in every column; rows of each group."""
    groups = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    group_NK = torch.stack([groups[torch.randperm(len(groups))] for _ in range(top_k)], 1)
    return group_NK, torch.tensor(counts, dtype=torch.int32) * top_k


def weighted_product(x_NI: Tensor, values_NK: Tensor, weight_EIO: Tensor, plan: DispatchPlan) -> Tensor:
    slots_MI = dispatch(x_NI, plan) * plan.slots(values_NK).unsqueeze(1)
    return combine(grouped_product(slots_MI, weight_EIO, plan), plan)


def loop_reference(x_NI: Tensor, values_NK: Tensor, weight_EIO: Tensor, group_NK: Tensor) -> Tensor:
    rows = [
        sum(value * (x_I @ weight_EIO[group]) for value, group in zip(values_K, group_K.tolist(), strict=True))
        for x_I, values_K, group_K in zip(x_NI, values_NK, group_NK, strict=True)
    ]
    return torch.stack(rows) if rows else x_NI.new_zeros(0, weight_EIO.shape[2])


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    top_k=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pad=st.booleans(),
)
@example(counts=[600, 3, 590, 0, 40, 38], top_k=1, widths=(3, 5), pad=True)
def test_outputs_and_gradients_equal_a_loop_over_rows(counts, top_k, widths, pad):
    torch.manual_seed(sum(counts))
    group_NK, counts_E = choices(counts, top_k)
    x_NI = torch.randn(len(group_NK), widths[0], dtype=torch.float64, requires_grad=True)
    values_NK = torch.randn(group_NK.shape, dtype=torch.float64, requires_grad=True)
    weight_EIO = torch.randn(len(counts), *widths, dtype=torch.float64, requires_grad=True)
    fast_NO = weighted_product(x_NI, values_NK, weight_EIO, plan_dispatch(group_NK, counts_E, pad=pad))
    slow_NO = loop_reference(x_NI, values_NK, weight_EIO, group_NK)
    torch.testing.assert_close(fast_NO, slow_NO)
    if len(x_NI):
        target_NO = torch.randn_like(slow_NO)
        inputs = [x_NI, values_NK, weight_EIO]
        fast, slow = (torch.autograd.grad(y_NO, inputs, target_NO) for y_NO in (fast_NO, slow_NO))
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("counts", [[90, 0, 85, 3], [700, 650, 20], [0, 0, 1]])
def test_bf16_rows_with_float32_weights_stay_close_and_give_float32_gradients(counts):
    torch.manual_seed(0)
    group_NK, counts_E = choices(counts, 2)
    plan = plan_dispatch(group_NK, counts_E, pad=True)
    x_NI, weight_EIO = torch.randn(len(group_NK), 24), torch.randn(len(counts), 24, 16, requires_grad=True)
    values_NK = torch.rand(group_NK.shape)
    half_NO = weighted_product(x_NI.bfloat16(), values_NK.bfloat16(), weight_EIO, plan)
    whole_NO = weighted_product(x_NI, values_NK, weight_EIO, plan)
    assert half_NO.dtype == torch.bfloat16
    torch.testing.assert_close(half_NO.float(), whole_NO, atol=0.2, rtol=0.05)
    target_NO = torch.randn_like(whole_NO)
    (half,) = torch.autograd.grad(half_NO, weight_EIO, target_NO.bfloat16())
    (whole,) = torch.autograd.grad(whole_NO, weight_EIO, target_NO)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=0.05 * float(whole.abs().max()), rtol=0.05)


@given(counts=st.lists(st.integers(0, 2000), min_size=1, max_size=40))
def test_runs_hold_every_group_once_and_waste_little(counts):
    runs = plan_runs(counts)
    assert sorted(group for run in runs for group in run.groups) == list(range(len(counts)))
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        assert following is None or following.slot == run.end
        rows = [counts[group] for group in run.groups]
        assert max(rows) <= run.height < max(rows) + 16
        assert len(rows) == 1 or run.end - run.slot <= 1.25 * sum(rows)


def test_slots_without_padding_are_in_the_order_of_groups():
    group_NK, counts_E = choices([2, 0, 5, 1], 1)
    plan = plan_dispatch(group_NK, counts_E)
    assert group_NK.flatten()[plan.source_M].tolist() == [0, 0, 2, 2, 2, 2, 2, 3]
    assert plan.ends_E.tolist() == [2, 2, 7, 8]
