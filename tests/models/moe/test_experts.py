"""Sparse experts against a loop over rows, and what the router promises."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.heads import TaskRouting
from models.layers.towers import DenseTower, DenseTowerConfig
from models.moe.experts import ExpertsConfig, MixtureOfExperts
from models.moe.router import Router, RouterConfig, routers
from models.moe.tower import MixtureConfig, MixtureTower


def make_router(width: int, experts: int, top_k: int, **settings: object) -> Router:
    return Router(width, RouterConfig.model_validate({"experts": experts, "top_k": top_k, **settings}))


def make_moe(
    width: int, hidden: int, experts: int, top_k: int, *, routing: TaskRouting | None = None, **settings: object
) -> MixtureOfExperts:
    sizes = {"hidden": hidden, "experts": experts, "top_k": top_k}
    return MixtureOfExperts(width, ExpertsConfig.model_validate(sizes | settings), routing=routing or TaskRouting())


def loop_reference(moe: MixtureOfExperts, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
    """Row by row, expert by expert."""
    gates_NK, chosen_NK, _ = moe.router(x_ND if context_NC is None else context_NC)
    rows = []
    for x_D, gates_K, chosen_K in zip(x_ND, gates_NK, chosen_NK, strict=True):
        y_D = torch.zeros_like(x_D)
        for gate, e in zip(gates_K, chosen_K.tolist(), strict=True):
            y_D = y_D + gate * ((x_D @ moe.experts.w1_EDH[e]).relu() @ moe.experts.w2_EHD[e])
        if moe.shared is not None:
            y_D = y_D + (x_D @ moe.shared.w1_EDH[0]).relu() @ moe.shared.w2_EHD[0]
        rows.append(y_D)
    return torch.stack(rows) if rows else torch.zeros_like(x_ND)


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


def test_every_row_reaches_exactly_top_k_distinct_experts():
    router = make_router(12, 16, 4)
    gates_NK, chosen_NK, counts_E = router(torch.randn(200, 12))
    assert all(len(set(row)) == 4 for row in chosen_NK.tolist())
    assert counts_E.sum() == 800
    torch.testing.assert_close(gates_NK.sum(1), torch.ones(200))


def test_top_k_beyond_the_experts_is_refused():
    with pytest.raises(ValueError, match="top_k must lie between 1 and the number of experts"):
        make_moe(8, 8, 4, 5)


def test_the_single_gate_of_top_1_still_trains_the_router():
    moe = make_moe(8, 8, 4, 1, balance="none")
    moe(torch.randn(20, 8)).square().sum().backward()
    assert moe.router.weight.grad.abs().sum() > 0


def test_balance_loss_is_one_when_even_and_grows_with_collapse():
    even, collapsed = make_router(4, 4, 1), make_router(4, 4, 1)
    with torch.no_grad():
        even.weight.copy_(torch.eye(4) * 20)
        collapsed.weight.zero_()
        collapsed.weight[0] = 20.0
    even(torch.eye(4).repeat(5, 1))
    collapsed(torch.eye(4).repeat(5, 1))
    assert even.auxiliary_loss()[0].item() == pytest.approx(1.0, abs=1e-3)
    assert collapsed.auxiliary_loss()[0].item() == pytest.approx(4.0, abs=1e-3)


def test_bias_balances_without_a_loss_and_changes_only_the_choice():
    torch.manual_seed(3)
    router = make_router(8, 4, 1, balance="bias", gate="sigmoid")
    with torch.no_grad():
        router.weight[0] += 0.5
    x_ND = torch.rand(400, 8)
    before = router(x_ND)[2]
    scores_NE = torch.nn.functional.linear(x_ND, router.weight).sigmoid()
    for _ in range(600):
        router(x_ND)
        router.update_bias()
    gates_NK, chosen_NK, after = router(x_ND)
    assert router.auxiliary_loss() is None
    assert after.max() < before.max()
    assert after.max() < 2 * x_ND.shape[0] / 4
    torch.testing.assert_close(gates_NK, scores_NE.gather(1, chosen_NK))


def test_noise_and_load_belong_to_training():
    router = make_router(8, 4, 2, noise=5.0).eval()
    x_ND = torch.randn(50, 8)
    assert torch.equal(router(x_ND)[1], router(x_ND)[1])
    assert router.tokens_per_expert_E.sum() == 0
    router.train()
    assert not torch.equal(router(x_ND)[1], router(x_ND)[1])


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


def test_the_router_can_read_a_context_of_its_own():
    tower = MixtureTower(16, MixtureConfig(hidden=8, experts=4, top_k=1, blocks=2), context=3)
    x_ND, context_NC = torch.randn(30, 16), torch.randn(30, 3)
    moe = tower.mixtures[0]
    torch.testing.assert_close(moe(x_ND, context_NC), loop_reference(moe, x_ND, context_NC), atol=1e-5, rtol=1e-4)
    assert tower(x_ND, context_NC).shape == (30, 16)
    assert list(routers(tower)) == ["mixtures.0.router", "mixtures.1.router"]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_mixture_tower_adds_each_block_to_its_normalized_input(normalize):
    tower = MixtureTower(16, MixtureConfig(hidden=8, experts=4, top_k=2, blocks=2, normalize=normalize))
    x_ND = torch.randn(30, 16)
    expected_ND = x_ND
    for moe in tower.mixtures:
        read_ND = F.layer_norm(expected_ND, (16,)) if normalize else expected_ND
        expected_ND = expected_ND + loop_reference(moe, read_ND, read_ND)
    torch.testing.assert_close(tower(x_ND), expected_ND, atol=1e-5, rtol=1e-4)


def test_a_dense_tower_is_linear_relu_linear_relu():
    tower = DenseTower(6, DenseTowerConfig(hidden=(5, 4)))
    x_ND = torch.randn(7, 6)
    first, _, second, _ = tower.layers
    expected = (second.weight @ (first.weight @ x_ND.T + first.bias[:, None]).relu() + second.bias[:, None]).relu().T
    torch.testing.assert_close(tower(x_ND), expected)
    assert tower.out_width == 4


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
