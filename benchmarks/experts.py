"""Does a sparse mixture skip the work? Its training step beside a dense MLP of equal active FLOPs, and all experts.

A step is forward and backward of one block on 4096 rows of width 416: top-2 of 8, 32 and 128 experts of hidden width
256, router and dispatch included; an MLP 416-512-416; and 8 experts computed for every row, then masked by the gates.
Candidates take turns in every round, and medians over rounds are compared.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.experts import MixtureOfExperts

ROWS, WIDTH, HIDDEN, TOP_K = 4096, 416, 256, 2
ROUNDS, WARM_UP = 15, 3


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


def make_step(module: nn.Module, x_ND: Tensor, gradient_ND: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        x_ND.grad = None
        with torch.autocast(x_ND.device.type, dtype, enabled=dtype != torch.float32):
            y_ND = module(x_ND)
        y_ND.backward(gradient_ND.to(y_ND.dtype))

    return step


def measure(steps: dict[str, Callable[[], None]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step in every round, candidates in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(WARM_UP + ROUNDS):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def run(device: torch.device) -> dict[str, float]:
    """Print the table; give the ratios of medians."""
    torch.manual_seed(0)
    x_ND = torch.randn(ROWS, WIDTH, device=device, requires_grad=True)
    gradient_ND = torch.randn(ROWS, WIDTH, device=device) / ROWS
    result: dict[str, float] = {}
    print(f"{'':24}{'ms':>9}{'fastest':>9}{'slowest':>9}{'vs MLP':>9}{'vs all 8':>9}")
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        mixtures = {count: MixtureOfExperts(WIDTH, HIDDEN, count, TOP_K) for count in (8, 32, 128)}
        dense = nn.Sequential(
            nn.Linear(WIDTH, TOP_K * HIDDEN, bias=False), nn.ReLU(), nn.Linear(TOP_K * HIDDEN, WIDTH, bias=False)
        )
        modules: dict[str, nn.Module] = {
            f"dense MLP, {label}": dense,
            f"all 8 experts, {label}": AllExperts(mixtures[8]),
        }
        modules |= {f"top-2 of {count}, {label}": mixture for count, mixture in mixtures.items()}
        steps = {name: make_step(module.to(device), x_ND, gradient_ND, dtype) for name, module in modules.items()}
        seconds = measure(steps, device)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        mlp, everything = median[f"dense MLP, {label}"], median[f"all 8 experts, {label}"]
        for name, times in seconds.items():
            print(
                f"{name:24}{median[name] * 1e3:9.1f}{min(times) * 1e3:9.1f}{max(times) * 1e3:9.1f}"
                f"{median[name] / mlp:9.2f}{median[name] / everything:9.2f}"
            )
        for count in mixtures:
            suffix = "" if (count, label) == (8, "fp32") else f"_{count}_{label}"
            result[f"vs_equal_flop_mlp{suffix}"] = round(median[f"top-2 of {count}, {label}"] / mlp, 3)
            result[f"vs_all_experts{suffix}"] = round(median[f"top-2 of {count}, {label}"] / everything, 3)
    return result


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {name}")
    print(json.dumps(run(device)))


if __name__ == "__main__":
    main()
