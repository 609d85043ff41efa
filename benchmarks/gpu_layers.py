"""Experts and 2:4 products on a GPU: what ``benchmarks.gpu`` measures of single layers.

Experts are forward and backward of one block, router included; the MLP beside them has as many active FLOPs, and a
width that is a multiple of 16, because others take slow products. Captured steps are replayed as CUDA graphs. Products
with 2:4 semi-structured weights are compared with dense ones.
"""

import copy
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.common import in_turns, spread
from benchmarks.experts import AllExperts
from models.moe import fused
from models.moe.experts import ExpertsConfig, MixtureOfExperts

ROUNDS, STEPS, TOP_K = 7, 10, 2
EXPERT_SHAPES = ((4096, 416, 256), (65_536, 416, 256), (65_536, 512, 1024))
EXPERT_COUNTS = (8, 32, 128)
SPARSE_SHAPES = ((4096, 1024, 1024), (65_536, 1024, 1024), (65_536, 1664, 1024), (65_536, 4096, 4096))
Lines = list[list[str]]
Step = Callable[[], object]


def milliseconds(step: Step) -> float:
    """Of one of several steps that are queued without waiting for each other."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / STEPS * 1000


def compare(steps: Mapping[str, Step]) -> dict[str, list[float]]:
    """Milliseconds of every step by round, in turns, after a round that compiles and warms up."""
    timed = {name: functools.partial(milliseconds, step) for name, step in steps.items()}
    in_turns(timed, 2)
    return in_turns(timed, ROUNDS)


def step_of(module: nn.Module, batches: list[Tensor], dtype: torch.dtype) -> Step:
    """Forward and backward of ``module`` on one of the batches (N, D) after the other."""
    gradient_ND = torch.randn_like(batches[0]) / len(batches[0])
    count = 0

    def step() -> None:
        nonlocal count
        x_ND = batches[count % len(batches)].requires_grad_()
        count += 1
        x_ND.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y_ND = module(x_ND)
        y_ND.backward(gradient_ND.to(y_ND.dtype))

    return step


def graph_of(step: Step) -> Step:
    """The step as a CUDA graph; its parameters must not have taken a gradient on another stream."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return graph.replay


def measure_experts(lines: Lines, *, dtype: torch.dtype, triton: bool) -> dict[str, float]:
    """Ratios of every mixture; ``lines`` takes the table's rows."""
    os.environ[fused.VARIABLE] = "1" if triton else "0"
    ratios: dict[str, float] = {}
    for shape in EXPERT_SHAPES:
        for count in EXPERT_COUNTS:
            ratios |= _mixture(shape, count, dtype, lines)
    return ratios


def _mixture(shape: tuple[int, int, int], count: int, dtype: torch.dtype, lines: Lines) -> dict[str, float]:
    rows, width, hidden = shape
    name = f"{rows}x{width}x{hidden} {'bf16' if dtype == torch.bfloat16 else 'fp32'}, {count} experts"
    batches = [torch.randn(rows, width, device="cuda") for _ in range(3)]
    mixture = MixtureOfExperts(width, ExpertsConfig(hidden=hidden, experts=count, top_k=TOP_K)).cuda()
    like = -(-(TOP_K * hidden + count // 2) // 16) * 16
    mlp = nn.Sequential(nn.Linear(width, like, bias=False), nn.ReLU(), nn.Linear(like, width, bias=False)).cuda()
    steps = {"MLP": step_of(mlp, batches, dtype), f"top-{TOP_K}": step_of(mixture, batches, dtype)}
    if count == EXPERT_COUNTS[0]:
        steps["all"] = step_of(AllExperts(mixture), batches, dtype)
    for name_of, module in (("MLP", mlp), (f"top-{TOP_K}", mixture)):
        try:
            steps[f"{name_of}, captured"] = graph_of(step_of(copy.deepcopy(module), [batches[0].clone()], dtype))
        except RuntimeError as error:
            lines.append([f"{name}: {name_of}, captured", str(error).splitlines()[0][:60], ""])
    found = compare(steps)
    median = {candidate: statistics.median(values) for candidate, values in found.items()}
    for candidate, values in found.items():
        mlp_like = "MLP, captured" if "captured" in candidate else "MLP"
        ratio = f"{median[candidate] / median[mlp_like]:.2f}" if mlp_like in median else ""
        lines.append([f"{name}: {candidate}", spread(values), ratio])
    mine = median[f"top-{TOP_K}"]
    ratios = {f"{name}: vs MLP": mine / median["MLP"]}
    if "MLP, captured" in median and f"top-{TOP_K}, captured" in median:
        ratios[f"{name}: vs MLP, captured"] = median[f"top-{TOP_K}, captured"] / median["MLP, captured"]
    if "all" in median:
        ratios[f"{name}: vs all"] = mine / median["all"]
    return ratios


def measure_sparse(lines: Lines) -> dict[str, float]:
    """Rates of products with 2:4 semi-structured weights over dense ones, in bf16."""
    ratios = {}
    for rows, inputs, outputs in SPARSE_SHAPES:
        x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
        weight *= torch.tensor([1, 1, 0, 0], device="cuda", dtype=torch.bfloat16).repeat(inputs // 4)
        half = torch.sparse.to_sparse_semi_structured(weight)
        steps = {
            "dense": functools.partial(nn.functional.linear, x, weight),
            "2:4": functools.partial(nn.functional.linear, x, half),
        }
        found = compare(steps)
        ratio = statistics.median(found["dense"]) / statistics.median(found["2:4"])
        lines += [[f"{rows}x{inputs}x{outputs}: {name}", spread(values), ""] for name, values in found.items()]
        ratios[f"2:4 {rows}x{inputs}x{outputs}: rate vs dense"] = ratio
    return ratios
