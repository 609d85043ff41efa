"""Does a sparse mixture skip the work? Its training step beside a dense MLP of equal active FLOPs, and all experts.

A step is forward and backward of one block on 4096 rows of width 416: top-2 of 8, 32 and 128 experts of hidden width
256, router and dispatch included; an MLP 416-512-416; and 8 experts computed for every row, then masked by the gates.
Candidates take turns in every round, and medians over rounds are compared.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import in_turns, machine, spread, table
from models.experts import MixtureOfExperts

ROWS, WIDTH, HIDDEN, TOP_K = 4096, 416, 256, 2
EXPERTS = (8, 32, 128)
ROUNDS, WARM_UP = 15, 3
DENSE, ALL = "dense MLP", "all 8 experts"


class AllExperts(nn.Module):
    """The same mixture with every expert computed for every row, as two wide products (the best way to do so)."""

    def __init__(self, mixture: MixtureOfExperts) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x_ND: Tensor) -> Tensor:
        experts = self.mixture.experts
        count, width, hidden = experts.w1_EDH.shape
        gates_NK, chosen_NK, _ = self.mixture.router(x_ND)
        gates_NE = gates_NK.new_zeros(len(x_ND), count).scatter(1, chosen_NK, gates_NK)
        hidden_NEH = (x_ND @ experts.w1_EDH.transpose(0, 1).reshape(width, -1)).relu().view(-1, count, hidden)
        gated_NF = (hidden_NEH * gates_NE.unsqueeze(2).to(hidden_NEH.dtype)).flatten(1)
        return gated_NF @ experts.w2_EHD.flatten(0, 1)


def step_of(module: nn.Module, x_ND: Tensor, gradient_ND: Tensor, dtype: torch.dtype) -> Callable[[], float]:
    """A training step of ``module`` that returns its seconds."""
    device = x_ND.device

    def step() -> float:
        for parameter in module.parameters():
            parameter.grad = None
        x_ND.grad = None
        begin = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y_ND = module(x_ND)
        y_ND.backward(gradient_ND.to(y_ND.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    return step


def measure(dtype: torch.dtype, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every candidate by round."""
    torch.manual_seed(0)
    x_ND = torch.randn(ROWS, WIDTH, device=device, requires_grad=True)
    gradient_ND = torch.randn(ROWS, WIDTH, device=device) / ROWS
    first, second = nn.Linear(WIDTH, TOP_K * HIDDEN, bias=False), nn.Linear(TOP_K * HIDDEN, WIDTH, bias=False)
    mixtures = {count: MixtureOfExperts(WIDTH, HIDDEN, count, TOP_K) for count in EXPERTS}
    modules: dict[str, nn.Module] = {DENSE: nn.Sequential(first, nn.ReLU(), second), ALL: AllExperts(mixtures[8])}
    modules |= {f"top-{TOP_K} of {count}": mixture for count, mixture in mixtures.items()}
    steps = {name: step_of(module.to(device), x_ND, gradient_ND, dtype) for name, module in modules.items()}
    in_turns(steps, WARM_UP)
    return in_turns(steps, ROUNDS)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine() if device.type == "cpu" else f"{machine()}; {torch.cuda.get_device_name()}")
    lines, result = [], {}
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        seconds = measure(dtype, device)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        for name, values in seconds.items():
            ratios = [median[name] / median[DENSE], median[name] / median[ALL]]
            lines.append([f"{name}, {label}", spread([1e3 * value for value in values]), *(f"{r:.2f}" for r in ratios)])
        for count in EXPERTS:
            suffix = "" if (count, label) == (8, "fp32") else f"_{count}_{label}"
            result[f"vs_equal_flop_mlp{suffix}"] = round(median[f"top-{TOP_K} of {count}"] / median[DENSE], 3)
            result[f"vs_all_experts{suffix}"] = round(median[f"top-{TOP_K} of {count}"] / median[ALL], 3)
    print(table(["step", "ms", "times the MLP", "times all 8"], lines))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
