"""Does a sparse mixture skip the work? Its training step beside a dense MLP of equal active FLOPs, and all experts.

A step is forward and backward of one block on 4096 rows of width 416: top-2 of 8, 32 and 128 experts of hidden width
256, router and dispatch included; an MLP of as many active FLOPs, the router's included (hidden 516 beside 8 experts,
528 beside 32, 576 beside 128); and 8 experts computed for every row, then masked by the gates. Steps see different
rows, so that experts' shares change as they do in training. "Weights" is what many experts cost in any implementation:
reading all weights and writing as many gradients, once.
Candidates take turns in every round, and medians over rounds are compared.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import in_turns, machine, spread, table
from models.moe.experts import ExpertsConfig, MixtureOfExperts

ROWS, WIDTH, HIDDEN, TOP_K = 4096, 416, 256, 2
EXPERTS = (8, 32, 128)
ROUNDS, WARM_UP, INPUTS = 15, 5, 5
ALL = "all 8 experts"


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
        y_ND: Tensor = gated_NF @ experts.w2_EHD.flatten(0, 1)
        return y_ND


def sparse(count: int) -> str:
    return f"top-{TOP_K} of {count}"


def dense(count: int) -> str:
    """The MLP beside so many experts: as many FLOPs as two of them and the router."""
    return f"MLP like {TOP_K} of {count}"


def weights(count: int) -> str:
    return f"weights of {count}"


def step_of(module: nn.Module, batches: list[Tensor], dtype: torch.dtype) -> Callable[[], float]:
    """A training step of ``module`` on the next batch (N, D) that returns its seconds."""
    upcoming = itertools.cycle(batches)
    gradient_ND = torch.randn_like(batches[0]) / ROWS

    def step() -> float:
        for parameter in module.parameters():
            parameter.grad = None
        x_ND = next(upcoming).requires_grad_()
        x_ND.grad = None
        begin = time.perf_counter()
        with torch.autocast(x_ND.device.type, dtype, enabled=dtype != torch.float32):
            y_ND = module(x_ND)
        y_ND.backward(gradient_ND.to(y_ND.dtype))
        _wait(x_ND.device)
        return time.perf_counter() - begin

    return step


def traffic_of(experts: nn.Module, device: torch.device) -> Callable[[], float]:
    def step() -> float:
        begin = time.perf_counter()
        for parameter in experts.parameters():
            parameter.detach().clone()
        _wait(device)
        return time.perf_counter() - begin

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(dtype: torch.dtype, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every candidate by round."""
    torch.manual_seed(0)
    batches = [torch.randn(ROWS, WIDTH, device=device) for _ in range(INPUTS)]
    mixtures = {
        count: MixtureOfExperts(WIDTH, ExpertsConfig(hidden=HIDDEN, experts=count, top_k=TOP_K)).to(device)
        for count in EXPERTS
    }
    modules: dict[str, nn.Module] = {ALL: AllExperts(mixtures[8])}
    steps = {}
    for count, mixture in mixtures.items():
        hidden = TOP_K * HIDDEN + count // 2
        layers = nn.Linear(WIDTH, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, WIDTH, bias=False)
        modules |= {dense(count): nn.Sequential(*layers).to(device), sparse(count): mixture}
        steps[weights(count)] = traffic_of(mixture.experts, device)
    steps |= {name: step_of(module, batches, dtype) for name, module in modules.items()}
    in_turns(steps, WARM_UP)
    return in_turns(steps, ROUNDS)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine() if device.type == "cpu" else f"{machine()}; {torch.cuda.get_device_name()}")
    lines, result = [], {}
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        seconds = measure(dtype, device)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        of_all = {name: value / median[ALL] for name, value in median.items()}
        milliseconds = {name: spread([1e3 * value for value in values]) for name, values in seconds.items()}
        lines.append([f"{ALL}, {label}", milliseconds[ALL], "", ""])
        for count in EXPERTS:
            of_mlp = {name: value / median[dense(count)] for name, value in median.items()}
            for name in (dense(count), weights(count), sparse(count)):
                ratios = [f"{of_mlp[name]:.2f}", f"{of_all[name]:.2f}"]
                lines.append([f"{name}, {label}", milliseconds[name], *ratios])
            suffix = "" if (count, label) == (8, "fp32") else f"_{count}_{label}"
            result[f"vs_equal_flop_mlp{suffix}"] = round(of_mlp[sparse(count)], 3)
            result[f"vs_all_experts{suffix}"] = round(of_all[sparse(count)], 3)
    print(table(["step", "ms", "times its MLP", "times all 8"], lines))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
