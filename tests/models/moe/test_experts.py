"""Sparse experts against a loop over rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_examples import loop_reference, make_moe

from models.layers.heads import TaskRouting


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 24),
    hidden=st.integers(1, 20),
    experts=st.integers(1, 9),
    data=st.data(),
)
def test_outputs_and_gradients_equal_a_loop_over_rows(rows, width, hidden, experts, data):
    top_k = data.draw(st.integers(1, experts))
    gate = data.draw(st.sampled_from(["softmax", "sigmoid"]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    moe = make_moe(width, hidden, experts, top_k, gate=gate, shared=data.draw(st.booleans()))
    x_ND = torch.randn(rows, width, requires_grad=True)
    target_ND = torch.randn(rows, width)
    parameters = [x_ND, *moe.parameters()]
    fast_ND, slow_ND = moe(x_ND), loop_reference(moe, x_ND)
    torch.testing.assert_close(fast_ND, slow_ND, atol=1e-5, rtol=1e-4)
    if rows:
        fast = torch.autograd.grad((fast_ND * target_ND).sum(), parameters, allow_unused=True)
        slow = torch.autograd.grad((slow_ND * target_ND).sum(), parameters, allow_unused=True)
        for mine, expected in zip(fast, slow, strict=True):
            expected = torch.zeros_like(mine) if expected is None else expected
            torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-3)


def test_an_expert_without_rows_gets_no_gradient_and_does_no_harm():
    moe = make_moe(8, 16, 4, 1)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[2, 0] = 1.0
    x_ND = torch.rand(10, 8) + 1
    moe(x_ND).square().sum().backward()
    assert moe.router.tokens_per_expert_E.tolist() == [0, 0, 10, 0]
    touched = moe.experts.w1_EDH.grad.abs().sum((1, 2)) > 0
    assert touched.tolist() == [False, False, True, False]


def test_top_k_beyond_the_experts_is_refused():
    with pytest.raises(ValueError, match="top_k must be between 1 and the number of experts"):
        make_moe(8, 8, 4, 5)


def test_the_single_gate_of_top_1_still_trains_the_router():
    moe = make_moe(8, 8, 4, 1, balance="none")
    moe(torch.randn(20, 8)).square().sum().backward()
    assert moe.router.weight.grad.abs().sum() > 0


def test_bf16_autocast_keeps_router_and_result_close():
    moe = make_moe(20, 24, 4, 2)
    x_ND = torch.randn(64, 20)
    full_ND = moe(x_ND)
    with torch.autocast("cpu", torch.bfloat16):
        half_ND = moe(x_ND)
        gates_NK, chosen_NK, _ = moe.router(x_ND)
    assert gates_NK.dtype == torch.float32
    assert torch.equal(chosen_NK, moe.router(x_ND)[1])
    torch.testing.assert_close(half_ND.float(), full_ND, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("own_experts", [False, True])
def test_each_task_routes_its_own_rows_over_the_same_experts(own_experts):
    moe = make_moe(8, 12, 6, 2, routing=TaskRouting(2, own_experts))
    x_TND = torch.randn(2, 30, 8)
    gates_NK, chosen_NK, counts_E = moe.router(x_TND)
    y_TND = moe(x_TND)
    for n, (x_D, gates_K, chosen_K) in enumerate(zip(x_TND.flatten(0, 1), gates_NK, chosen_NK, strict=True)):
        outputs = [(x_D @ moe.experts.w1_EDH[e]).relu() @ moe.experts.w2_EHD[e] for e in chosen_K]
        expected_D = sum(gate * output_D for gate, output_D in zip(gates_K, outputs, strict=True))
        torch.testing.assert_close(y_TND.flatten(0, 1)[n], expected_D, atol=1e-5, rtol=1e-4)
    assert counts_E.sum() == 2 * 30 * 2
    if own_experts:
        assert set(chosen_NK[:30].flatten().tolist()) <= {0, 3, 1, 4}
        assert set(chosen_NK[30:].flatten().tolist()) <= {0, 3, 2, 5}
