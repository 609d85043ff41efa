"""Experts by Triton kernels against the plain products in higher precision, and against themselves."""

import copy
from collections.abc import Iterator

import pytest
import torch
from moe_examples import make_moe
from torch import Tensor

from models.moe.dispatch import combine, dispatch, plan_dispatch
from models.moe.experts import MixtureOfExperts
from models.moe.fused import VARIABLE, can_fuse, fused_experts
from models.sparsity.activations import measure_activity


@pytest.fixture(autouse=True)
def ask_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


SHAPES = {
    "even": (512, 64, 96, 4, 2),
    "odd widths": (300, 37, 29, 5, 2),
    "tall groups": (9000, 416, 256, 8, 2),
    "many experts": (4096, 64, 64, 128, 2),
    "one expert": (70, 16, 8, 1, 1),
    "all experts": (50, 24, 40, 3, 3),
    "one row": (1, 16, 16, 8, 2),
}


def test_the_cpu_keeps_the_plain_products():
    assert not can_fuse(torch.zeros(2, 2))


def make_case(shape: str, skewed: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows, gates and both layers on the GPU; chosen experts, where skewed one without rows; their counts."""
    rows, width, hidden, experts, top_k = SHAPES[shape]
    preference_NE = torch.rand(rows, experts)
    if skewed and experts > top_k:
        preference_NE[:, 0] += 1
        preference_NE[:, -1] -= 2
    chosen_NK = preference_NE.topk(top_k).indices
    counts_E = torch.bincount(chosen_NK.flatten(), minlength=experts).int()
    inputs = [
        torch.randn(rows, width),
        torch.rand(rows, top_k),
        torch.randn(experts, width, hidden) / width**0.5,
        torch.randn(experts, hidden, width) / hidden**0.5,
    ]
    return [tensor.cuda() for tensor in inputs], chosen_NK.cuda(), counts_E.cuda()


def reference(inputs: list[Tensor], chosen_NK: Tensor, counts_E: Tensor, target_ND: Tensor) -> list[Tensor]:
    """Outputs and gradients in float64 on the CPU, through the plain form."""
    x, gates, w1, w2 = leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    plan = plan_dispatch(chosen_NK.cpu(), counts_E.cpu())
    slots = plan.ends_E.diff(prepend=plan.ends_E.new_zeros(1)).tolist()
    parts = zip(dispatch(x, plan).split(slots), plan.slots(gates).split(slots), w1, w2, strict=True)
    y = combine(torch.cat([gate[:, None] * ((rows @ a).relu() @ b) for rows, gate, a, b in parts]), plan)
    return [y.detach(), *torch.autograd.grad(y, leaves, target_ND.cpu().double())]


@pytest.fixture
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tf32", "error"), [("float32", False, 1e-5), ("float32", True, 3e-3), ("bfloat16", True, 2e-2)]
)
def test_outputs_and_gradients_are_those_of_float64(shape, skewed, dtype, tf32, error, full_precision):
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    (x, gates, w1, w2), chosen_NK, counts_E = make_case(shape, skewed)
    x = x.to(getattr(torch, dtype))
    leaves = [tensor.requires_grad_() for tensor in (x, gates, w1, w2)]
    target_ND = torch.randn_like(x)
    expected = reference(leaves, chosen_NK, counts_E, target_ND)
    y = fused_experts(*leaves, plan_dispatch(chosen_NK, counts_E))
    found = [y, *torch.autograd.grad(y, leaves, target_ND)]
    for mine, wanted in zip(found, expected, strict=True):
        wanted = wanted.cuda()
        assert (mine.double() - wanted).norm() <= error * wanted.norm().clamp(min=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_runs_give_the_same_bits(dtype):
    leaves, chosen_NK, counts_E = make_case("tall groups", skewed=True)
    leaves[0] = leaves[0].to(getattr(torch, dtype))
    target_ND = torch.randn_like(leaves[0])

    def run() -> list[Tensor]:
        copies = [tensor.detach().clone().requires_grad_() for tensor in leaves]
        y = fused_experts(*copies, plan_dispatch(chosen_NK, counts_E))
        return [y, *torch.autograd.grad(y, copies, target_ND)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("k_winners", [None, 0.5])
def test_a_mixture_on_the_gpu_gives_what_it_gives_on_the_cpu(k_winners, full_precision):
    moe = make_moe(32, 48, 8, 2, k_winners=k_winners, shared=True)
    x_ND, target_ND = torch.randn(200, 32), torch.randn(200, 32)

    def run(device: str) -> list[Tensor]:
        there = copy.deepcopy(moe).to(device)  # k-winners remember their rows
        x = x_ND.to(device).requires_grad_()
        y = there(x)
        return [tensor.cpu() for tensor in (y, *torch.autograd.grad(y, [x, *there.parameters()], target_ND.to(device)))]

    for mine, expected in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
def test_the_hidden_units_of_experts_can_be_watched():
    moe = make_moe(32, 48, 8, 2).cuda()
    with measure_activity(moe) as activity:
        moe(torch.randn(200, 32, device="cuda"))
    assert 0.2 < activity["experts.activation"] < 0.8


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_a_mixture_never_waits_for_the_gpu(dtype):
    moe = make_moe(64, 64, 8, 2).cuda()
    x_ND = torch.randn(512, 64, device="cuda", requires_grad=True)

    def step() -> None:
        with torch.autocast("cuda", getattr(torch, dtype), enabled=dtype != "float32"):
            y_ND = moe(x_ND)
        y_ND.float().square().sum().backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_mixture_can_be_captured_as_a_graph():
    moe = make_moe(64, 64, 8, 2, balance="none").cuda()
    x_ND, other_ND = (torch.randn(512, 64, device="cuda") for _ in range(2))
    expected = moe(other_ND).detach()
    captured = torch.cuda.make_graphed_callables(moe, (x_ND.requires_grad_(),))
    assert isinstance(captured, MixtureOfExperts)
    torch.testing.assert_close(captured(other_ND.requires_grad_()), expected)
