"""Whole models on a GPU: what ``benchmarks.gpu`` measures of training and scoring.

The demo's config is trained with and without CUDA graphs; 26 tables of 180,000 rows of width 64, with two cross layers
and a 1024-512-256 tower, at two batch sizes. Beside them: the loader alone; the step alone on batches that are on the
GPU already, with its launches; and a peer written by hand without cross layers: FBGEMM's tables, the same tower and
fused Adam on such batches. A table of 100 million rows is started, trained and saved; one of 20 million is kept on the
card, cached, and in the machine's memory. An artifact scores a log on the CPU and on the GPU.
"""

import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import spread
from benchmarks.gpu_layers import Lines
from benchmarks.train import Shape
from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run
from recsys.training.train import train
from recsys.training.trainer import Trainer
from serving.artifact.device import DeviceName
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions

TABLES, TABLE_ROWS, DIM, HIDDEN = 26, 180_000, 64, (1024, 512, 256)
LOG_ROWS, DEMO_ROWS, DEMO_BATCH = 4_000_000, 1_000_000, 4096
LARGE_ROWS, MEMORY_ROWS, LARGE_BATCH = 100_000_000, 20_000_000, 32_768
LOADER_THREADS = min(8, os.cpu_count() or 1)


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


def step_alone(config: ExperimentConfig, dataset: Dataset, folder: Path, name: str, lines: Lines) -> dict[str, float]:
    """Rows per second of the step on batches that are on the GPU, and what one step starts and waits for."""
    with Trainer(config, dataset, folder / f"alone-{name}") as trainer:
        device, rows = trainer.processes.device, config.train.batch_size
        full = (batch.to(device) for batch in trainer.loader if len(batch) == rows)
        batches = [batch for batch, _ in zip(full, range(8), strict=False)]
        for batch in batches * 2:
            trainer._step(batch)
        torch.cuda.synchronize()
        begin, rounds = time.perf_counter(), max(2, 1_000_000 // (len(batches) * rows))
        for _ in range(rounds):
            for batch in batches:
                trainer._step(batch)
        torch.cuda.synchronize()
        rate = rounds * len(batches) * rows / (time.perf_counter() - begin)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for batch in batches:
                trainer._step(batch)
            torch.cuda.synchronize()
    events, steps = profiled.events() or [], len(batches)
    calls = Counter(event.name for event in events)
    busy = sum(event.time_range.elapsed_us() for event in events if event.device_type.name == "CUDA") / 1000
    started = sum(count for call, count in calls.items() if "Launch" in call) / steps
    waits = sum(count for call, count in calls.items() if "Synchronize" in call) / steps
    lines.append([f"{name}: step alone, resident batches", f"{rate:,.0f}", ""])
    lines.append(
        [f"{name}: one step: launches, ms of kernels, waits", f"{started:.0f}, {busy / steps:.2f}, {waits:.1f}", ""]
    )
    return {
        f"{name}: step alone, rows/s": rate,
        f"{name}: launches per step": started,
        f"{name}: kernels, ms": busy / steps,
    }


def loader_rate(dataset: Dataset, batch_size: int) -> float:
    """Rows per second of the loader alone, with the threads that training gives it."""
    begin, rows = time.perf_counter(), 0
    for batch in Loader(dataset, "train", batch_size=batch_size, shuffle=True, threads=LOADER_THREADS):
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
            "train": {
                "epochs": 2,
                "batch_size": batch_size,
                "precision": "bf16",
                "checkpoint_every": 10**9,
                "loader_threads": LOADER_THREADS,
            },
        }
    )


def measure_tables(folder: Path, lines: Lines, *, batch_size: int) -> dict[str, float]:
    """Whole trainings of 26 tables beside the plain peer, the loader alone and the step alone."""
    log = folder / "log.parquet"
    Shape("26 tables", LOG_ROWS, (TABLE_ROWS,) * TABLES).write_log(log)
    config, name = tables_config(log, batch_size), f"26 tables, {batch_size}"
    dataset = prepare(config.data, folder / "dataset")
    rates: dict[str, list[float]] = {}
    for turn in range(3):
        result = train(config, dataset, folder / f"run-{turn}")
        rates.setdefault("training", []).append(result.samples_per_s)
        rates.setdefault("loader alone", []).append(loader_rate(dataset, batch_size))
        rates.setdefault("plain FBGEMM + MLP, resident", []).append(plain_rate(dataset, batch_size))
    median = {candidate: statistics.median(values) for candidate, values in rates.items()}
    plain = median["plain FBGEMM + MLP, resident"]
    lines += [
        [f"{name}: {candidate}", spread(values), f"{median[candidate] / plain:.2f}"]
        for candidate, values in rates.items()
    ]
    alone = step_alone(config, dataset, folder, name, lines)
    return {f"{name}: vs plain": median["training"] / plain, f"{name}: rows/s": median["training"], **alone}


def demo_config(log: Path, **settings: object) -> ExperimentConfig:
    """The demo's experiment with large batches and a loader that is fast enough."""
    return ExperimentConfig.model_validate(_demo_content(log, **settings))


def _demo_content(log: Path, **settings: object) -> dict[str, Any]:
    content = demo_experiment(str(log))
    content["train"] |= {"batch_size": DEMO_BATCH, "epochs": 2, "loader_threads": LOADER_THREADS, **settings}
    return content


def measure_demo(folder: Path, lines: Lines) -> dict[str, float]:
    """Rows per second of the demo's config, by precision, with and without CUDA graphs."""
    log = folder / "demo.parquet"
    generate(DemoConfig(rows=DEMO_ROWS), log)
    dataset, found = prepare(demo_config(log).data, folder / "demo"), dict[str, float]()
    variants: dict[str, dict[str, object]] = {
        "bf16": {"precision": "bf16"},
        "bf16, no graphs": {"precision": "bf16", "cuda_graphs": False},
        "fp32": {"precision": "fp32"},
    }
    for variant, settings in variants.items():
        name, config = f"demo, batch {DEMO_BATCH}, {variant}", demo_config(log, **settings)
        result = train(config, dataset, folder / f"run {variant}")
        found[f"{name}: rows/s"] = result.samples_per_s
        found[f"{name}: auc"] = result.value or float("nan")
        lines.append([f"{name}: training", f"{result.samples_per_s:,.0f}", ""])
        found |= step_alone(config, dataset, folder, name, lines)
    lines.append([f"demo: loader alone, {LOADER_THREADS} threads", f"{loader_rate(dataset, DEMO_BATCH):,.0f}", ""])
    return found


def large_config(log: Path, rows: int, memory: str) -> ExperimentConfig:
    """One hashed table of so many rows, and a small tower."""
    return ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(log),
                "tasks": {"label": {"column": "label"}},
                "split": {"by": "random", "valid": 0.0, "test": 0.0},
                "features": {"id": {"kind": "hash", "rows": rows}},
            },
            "model": {
                "dim": DIM,
                "tower": {"kind": "mlp", "hidden": [256]},
                "tables": {"id": {"memory": memory}},
            },
            "train": {"epochs": 1, "batch_size": LARGE_BATCH, "precision": "bf16", "checkpoint_every": 10**9},
        }
    )


def _large_log(folder: Path) -> Path:
    log, rng = folder / "large.parquet", np.random.default_rng(0)
    ids = (LARGE_ROWS * rng.random(LOG_ROWS) ** 3).astype(np.int64)
    pl.DataFrame({"id": ids, "label": rng.integers(0, 2, LOG_ROWS)}).write_parquet(log)
    return log


def _epoch_rate(trainer: Trainer) -> float:
    """Rows per second of one epoch, its first step included."""
    begin, rows = time.perf_counter(), 0
    for batch in trainer._batches:
        trainer._step(batch)
        rows += len(batch)
    torch.cuda.synchronize()
    return rows / (time.perf_counter() - begin)


def measure_large(folder: Path, lines: Lines) -> dict[str, float]:
    """A table of 100 million rows: start, steps, and a checkpoint, where the disk has room for it."""
    config = large_config(_large_log(folder), LARGE_ROWS, "hbm")
    dataset, begin = prepare(config.data, folder / "dataset"), time.perf_counter()
    found: dict[str, float] = {}
    with Trainer(config, dataset, folder / "run") as trainer:
        torch.cuda.synchronize()
        found["100 million rows: start, s"] = time.perf_counter() - begin
        found["100 million rows: rows/s"] = _epoch_rate(trainer)
        if shutil.disk_usage(folder).free > 1.3 * LARGE_ROWS * DIM * 4:
            begin = time.perf_counter()
            trainer._save()
            found["100 million rows: a checkpoint stops the training, s"] = time.perf_counter() - begin
            trainer._writer.wait()
            found["100 million rows: a checkpoint is written, s"] = time.perf_counter() - begin
    lines += [[name, f"{value:,.2f}", ""] for name, value in found.items()]
    return found


def measure_memory(folder: Path, lines: Lines) -> dict[str, float]:
    """The same table on the card, cached, and in the machine's memory."""
    log, found = _large_log(folder), dict[str, float]()
    for memory in ("hbm", "cached", "host"):
        config, name = large_config(log, MEMORY_ROWS, memory), f"20 million rows, {memory}"
        dataset = prepare(config.data, folder / f"dataset-{memory}")
        with Trainer(config, dataset, folder / memory) as trainer:
            rate = _epoch_rate(trainer)
        found[f"{name}: rows/s"] = rate
        lines.append([name, f"{rate:,.0f}", ""])
    return found


def measure_scoring(folder: Path, lines: Lines) -> dict[str, float]:
    """Rows per second of a batch job on the CPU and on the GPU, and how far their logits are apart."""
    log, found = folder / "demo.parquet", dict[str, float]()
    generate(DemoConfig(rows=DEMO_ROWS), log)
    config = ExperimentConfig.model_validate(
        _demo_content(log, epochs=1) | {"sparsity": {"quantization": {"table_bits": 8}}}
    )
    train(config, prepare(config.data, folder / "dataset"), folder / "run")
    artifact, logits = export_run(folder / "run", folder / "artifact"), dict[str, np.ndarray]()
    devices: tuple[DeviceName, ...] = ("cpu", "cuda")
    for device in devices:
        for turn in range(2):  # the first one warms up
            out = folder / f"{device}-{turn}"
            result = run_job(artifact, str(log), out, JobOptions(logits=True), device=device)
        logits[device] = pl.read_parquet(out / "part-*.parquet")["click:logit"].to_numpy()
        found[f"scoring, {device}: rows/s"] = result.rows_per_s or float("nan")
        lines.append([f"scoring, {result.device}", f"{result.rows_per_s or 0:,.0f}", ""])
    found["scoring: largest difference of logits"] = float(np.abs(logits["cuda"] - logits["cpu"]).max())
    return found
