"""How fast a GPU trains: whole models beside plain FBGEMM, and experts beside an MLP and beside all experts.

Training is ``train`` as users run it, loader included: the demo's config, and 26 tables of 180,000 rows of width 64
with two cross layers and a 1024-512-256 tower. Beside it, the loader alone, and a peer written by hand without cross
layers: FBGEMM's tables, the same tower and fused Adam on batches that are on the GPU already. Experts are forward and
backward of one block, router included; the MLP beside them has as many active FLOPs, and a width that is a multiple of
16, because others take slow products. "Plain" is the mixture without Triton. Captured steps are replayed as CUDA
graphs. Products with 2:4 semi-structured weights are compared with dense ones. Candidates take turns, and medians are
compared.
"""

import copy
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from benchmarks.common import SKIPPED, in_turns, machine, spread, table
from benchmarks.experts import AllExperts
from benchmarks.train import Shape
from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from models.moe import experts, fused
from models.moe.experts import ExpertsConfig, MixtureOfExperts
from recsys.config.experiment import ExperimentConfig
from recsys.training.train import train

ROUNDS, STEPS, TOP_K = 7, 10, 2
EXPERT_SHAPES = ((4096, 416, 256), (65_536, 416, 256), (65_536, 512, 1024))
EXPERT_COUNTS = (8, 32, 128)
TABLES, TABLE_ROWS, DIM, HIDDEN = 26, 180_000, 64, (1024, 512, 256)
LOG_ROWS, BATCHES = 4_000_000, (8_192, 65_536)
SPARSE_SHAPES = ((4096, 1024, 1024), (65_536, 1024, 1024), (65_536, 1664, 1024), (65_536, 4096, 4096))
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


@contextmanager
def _without_triton() -> Iterator[None]:
    refuse = functools.partial(mock.patch.object, attribute="can_fuse", return_value=False)
    with refuse(experts), refuse(fused):
        yield


def _plain(step: Step) -> Step:
    def run() -> None:
        with _without_triton():
            step()

    return run


def measure_experts(shape: tuple[int, int, int], dtype: torch.dtype, lines: list[list[str]]) -> dict[str, float]:
    """Ratios of every mixture of one shape; ``lines`` takes the table's rows."""
    rows, width, hidden = shape
    name = f"{rows}x{width}x{hidden} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
    batches = [torch.randn(rows, width, device="cuda") for _ in range(3)]
    ratios: dict[str, float] = {}
    for count in EXPERT_COUNTS:
        mixture = MixtureOfExperts(width, ExpertsConfig(hidden=hidden, experts=count, top_k=TOP_K)).cuda()
        like = -(-(TOP_K * hidden + count // 2) // 16) * 16
        mlp = nn.Sequential(nn.Linear(width, like, bias=False), nn.ReLU(), nn.Linear(like, width, bias=False)).cuda()
        steps = {"MLP": step_of(mlp, batches, dtype), f"top-{TOP_K}": step_of(mixture, batches, dtype)}
        if dtype == torch.bfloat16:
            steps["plain"] = _plain(step_of(mixture, batches, dtype))
        if count == EXPERT_COUNTS[0]:
            steps["all"] = step_of(AllExperts(mixture), batches, dtype)
        for name_of, module in (("MLP", mlp), (f"top-{TOP_K}", mixture)):
            captured = step_of(copy.deepcopy(module), [batches[0].clone()], dtype)
            steps[f"{name_of}, captured"] = graph_of(captured)
        found = compare(steps)
        median = {candidate: statistics.median(values) for candidate, values in found.items()}
        for candidate, values in found.items():
            of_mlp = median[candidate] / median["MLP, captured" if "captured" in candidate else "MLP"]
            lines.append([f"{name}, {count} experts: {candidate}", spread(values), f"{of_mlp:.2f}"])
        mine = median[f"top-{TOP_K}"]
        ratios[f"{name}, {count}: vs MLP"] = mine / median["MLP"]
        ratios[f"{name}, {count}: vs MLP, captured"] = median[f"top-{TOP_K}, captured"] / median["MLP, captured"]
        if "all" in median:
            ratios[f"{name}, {count}: vs all"] = mine / median["all"]
    return ratios


class PlainModel(nn.Module):
    """FBGEMM's fused tables and a tower: what one would write by hand for this shape alone."""

    def __init__(self, table_rows: Sequence[int]) -> None:
        super().__init__()
        specs = [(rows, DIM, EmbeddingLocation.DEVICE, ComputeDevice.CUDA) for rows in table_rows]
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            specs, optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=0.02
        )
        layers: list[nn.Module] = []
        for inputs, outputs in zip((len(table_rows) * DIM, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.tower = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1)).cuda()

    def forward(self, batch: Batch) -> Tensor:
        bags = batch.sparse
        logits_B1: Tensor = self.tower(self.tables(bags.values().long(), bags.offsets().long()))
        return logits_B1


def plain_rate(dataset: Dataset, batch_size: int) -> float:
    """Rows per second of the peer on batches that are on the GPU."""
    loader = Loader(dataset, "train", batch_size=batch_size, shuffle=True)
    device = torch.device("cuda")
    batches = [batch.to(device) for batch, _ in zip(loader, range(8), strict=False)]
    model = PlainModel([dataset.schema.table(feature.table).rows for feature in dataset.schema.sparse])
    optimizer = torch.optim.Adam(model.tower.parameters(), fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            logits_B1 = model(batch)
        assert batch.labels is not None
        loss = nn.functional.binary_cross_entropy_with_logits(logits_B1.float(), batch.labels)
        torch.autograd.backward(loss)
        optimizer.step()

    for batch in batches:
        step(batch)
    torch.cuda.synchronize()
    begin, rounds = time.perf_counter(), max(2, 1_000_000 // (8 * batch_size))
    for _ in range(rounds):
        for batch in batches:
            step(batch)
    torch.cuda.synchronize()
    return rounds * sum(map(len, batches)) / (time.perf_counter() - begin)


def loader_rate(dataset: Dataset, batch_size: int) -> float:
    """Rows per second of the loader alone, with the threads that training gives it."""
    begin, rows = time.perf_counter(), 0
    for batch in Loader(dataset, "train", batch_size=batch_size, shuffle=True):
        rows += len(batch)
    return rows / (time.perf_counter() - begin)


def tables_config(log: Path, batch_size: int) -> ExperimentConfig:
    """26 tables, two cross layers and a tower, in bf16."""
    features = {f"f{i:02}": {"kind": "id"} for i in range(TABLES)}
    split = {"by": "random", "valid": 0.0, "test": 0.0}
    return ExperimentConfig.model_validate(
        {
            "data": {"log": str(log), "tasks": {"label": {"column": "label"}}, "split": split, "features": features},
            "model": {
                "dim": DIM,
                "interaction": {"kind": "cross", "layers": 2},
                "tower": {"kind": "mlp", "hidden": list(HIDDEN)},
            },
            "train": {"epochs": 2, "batch_size": batch_size, "precision": "bf16", "checkpoint_every": 10**9},
        }
    )


def measure_training(folder: Path, lines: list[list[str]]) -> dict[str, float]:
    """Ratios of whole trainings to the plain peer; ``lines`` takes the table's rows."""
    log = folder / "log.parquet"
    Shape("26 tables", LOG_ROWS, (TABLE_ROWS,) * TABLES).write_log(log)
    dataset = prepare(tables_config(log, BATCHES[0]).data, folder / "dataset")
    ratios = {}
    for batch_size in BATCHES:
        rates: dict[str, list[float]] = {}
        for turn in range(2):
            result = train(tables_config(log, batch_size), dataset, folder / f"run-{batch_size}-{turn}")
            rates.setdefault("training", []).append(result.samples_per_s)
            rates.setdefault("loader alone", []).append(loader_rate(dataset, batch_size))
            rates.setdefault("plain FBGEMM + MLP, resident", []).append(plain_rate(dataset, batch_size))
        median = {name: statistics.median(values) for name, values in rates.items()}
        plain = median["plain FBGEMM + MLP, resident"]
        lines += [
            [f"26 tables, batch {batch_size:,}: {name}", spread(values), f"{median[name] / plain:.2f}"]
            for name, values in rates.items()
        ]
        ratios[f"26 tables, {batch_size}: vs plain"] = median["training"] / plain
    return ratios


def measure_demo(folder: Path, lines: list[list[str]]) -> dict[str, float]:
    """Rows per second of the demo's config."""
    log = folder / "demo.parquet"
    generate(DemoConfig(rows=1_000_000), log)
    content = demo_experiment(str(log))
    content["train"] |= {"batch_size": 4096, "epochs": 2}
    dataset = prepare(ExperimentConfig.model_validate(content).data, folder / "demo")
    rates = {}
    for precision in ("fp32", "bf16"):
        content["train"]["precision"] = precision
        result = train(ExperimentConfig.model_validate(content), dataset, folder / f"demo-{precision}")
        rates[f"demo, {precision}: rows/s"] = result.samples_per_s
        lines.append([f"demo, batch 4,096, {precision}: training", f"{result.samples_per_s:,.0f}", ""])
    return rates


def measure_sparse(lines: list[list[str]]) -> dict[str, float]:
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


def main() -> None:
    if not torch.cuda.is_available():
        print("Nothing was measured: Torch sees no GPU.")
        sys.exit(SKIPPED)
    os.environ[fused.VARIABLE] = "1"
    print(f"{machine()}; {torch.cuda.get_device_name()}\n")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    result: dict[str, float] = {}
    lines: list[list[str]] = []
    for dtype in (torch.bfloat16, torch.float32):
        for shape in EXPERT_SHAPES:
            result |= measure_experts(shape, dtype, lines)
    print(table(["forward and backward", "ms", "times its MLP"], lines), "\n", flush=True)
    lines = []
    result |= measure_sparse(lines)
    print(table(["product", "ms", ""], lines), "\n", flush=True)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        result |= measure_demo(Path(folder), lines)
        result |= measure_training(Path(folder), lines)
    print(table(["rows per second", "median (range)", "times plain"], lines), flush=True)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
