"""How fast training is: beside FuxiCTR's DCNv2 of the same shape, and beside the sum of its own parts.

Two shapes, both with embeddings of 16, three full cross layers and a 400-400 tower, batches of 4096: five features
(four ids and a bag), and 26 ids with a table of 200,000 rows each. Ours is ``train`` as users run it, loader included.
The bound adds the dense part alone to the tables alone, on batches that are already there. The limit replaces the
dense part by a step written by hand for this one shape, without graph, casts or optimizer (``bare_step.py``): what no
library can do without. FuxiCTR too gets its batches ready made, which spares it its loader. All take turns in every
round, and medians are compared.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from benchmarks.arrays import write_arrays
from benchmarks.bare_step import bare_step
from benchmarks.common import machine, peer_says, spread, table
from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from models.layers.interactions import CrossConfig
from models.layers.towers import DenseTowerConfig
from models.ranker import Ranker
from models.sharding.sharding import shard
from models.tables.lookup import Embedded, SparseTables
from recsys.config.experiment import ExperimentConfig
from recsys.runs.processes import process_group
from recsys.training.optimizers import make_optimizer
from recsys.training.train import train

BATCH, ROUNDS, STEPS, WARM_UP = 4096, 3, 20, 5


@dataclass(frozen=True)
class Shape:
    """A log to train on: rows, how many values each id feature has, and the bag's values, if there is one."""

    name: str
    rows: int
    ids: tuple[int, ...]
    bag: int | None = None

    def write_log(self, path: Path) -> None:
        """Ids that fall off as a power, each value there at least once, and a random label."""
        rng = np.random.default_rng(0)

        def ids(count: int, size: int) -> np.ndarray:
            drawn = (size * rng.random(count) ** 3).astype(np.int64)
            drawn[:size] = rng.permutation(size)[:count]
            return drawn

        columns: dict[str, object] = {f"f{i:02}": ids(self.rows, size) for i, size in enumerate(self.ids)}
        if self.bag:
            lengths = rng.integers(1, 8, self.rows)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            values = ids(int(offsets[-1]), self.bag)
            columns["bag"] = [values[start:stop] for start, stop in pairwise(offsets)]
        pl.DataFrame(columns | {"label": rng.integers(0, 2, self.rows)}).write_parquet(path)

    def config(self, log: Path, precision: str) -> ExperimentConfig:
        features: dict[str, object] = {f"f{i:02}": {"kind": "id"} for i in range(len(self.ids))}
        if self.bag:
            features["bag"] = {"kind": "bag"}
        return ExperimentConfig.model_validate(
            {
                "data": {
                    "log": str(log),
                    "tasks": {"label": {"column": "label"}},
                    "split": {"by": "random", "valid": 0.0, "test": 0.0},
                    "features": features,
                },
                "model": {"dim": 16, "tower": {"kind": "mlp", "hidden": [400, 400]}},
                "train": {"epochs": 1, "batch_size": BATCH, "precision": precision},
            }
        )


SHAPES = (
    Shape("5 features", 400_000, (200_000, 50_000, 1_000, 50), bag=5_000),
    Shape("26 tables of 200k", 400_000, (200_000,) * 26),
)


class _Given(nn.Module):
    """Stands in for tables: embeddings that are already there, and take a gradient."""

    def __init__(self, embedded: Embedded) -> None:
        super().__init__()
        self.embedded = embedded

    def forward(self, batch: Batch) -> Embedded:
        return self.embedded


def parts(config: ExperimentConfig, dataset: Dataset) -> dict[str, list[float]]:
    """Seconds a step of the tables alone, of the dense part alone, and of one written by hand."""
    with process_group() as processes:
        loader = Loader(dataset, "train", batch_size=BATCH, shuffle=True)
        batches = [batch for batch, _ in zip(loader, range(STEPS + WARM_UP), strict=False)]
        ranker = Ranker(
            config.model, dataset.schema, SparseTables(dataset.schema, config.model, device=torch.device("meta"))
        )
        sharded = shard(ranker, config.train.tables, processes.device)
        tables = sharded.module.tables
        embedded: Embedded = tables(batches[0])
        leaves = {name: value.detach().requires_grad_() for name, value in embedded.pooled.items()}
        dense = Ranker(config.model, dataset.schema, _Given(Embedded(leaves, {}, {})))
        settings = config.train.dense
        optimizer = make_optimizer(
            settings.optimizer,
            dense.parameters(),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        tower = config.model.tower
        interaction = config.model.interaction
        assert isinstance(tower, DenseTowerConfig)
        assert isinstance(interaction, CrossConfig)
        bare = bare_step(
            BATCH,
            sum(leaf.shape[1] for leaf in leaves.values()),
            tower.hidden,
            cross_layers=interaction.layers,
            dtype=dtype,
        )

        def tables_step(batch: Batch) -> None:
            pooled: Tensor = torch.cat(list(tables(batch).pooled.values()), 1)
            torch.autograd.backward(pooled, torch.full_like(pooled, 1e-6))

        def dense_step(batch: Batch) -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = dense(batch)
            assert batch.labels is not None
            torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(logits, batch.labels))
            optimizer.step()

        steps = {"tables": tables_step, "dense": dense_step, "bare": lambda _: bare()}
        return {name: _time(step, batches) for name, step in steps.items()}


def _time(step: Callable[[Batch], object], batches: list[Batch]) -> list[float]:
    seconds = []
    for batch in batches:
        if len(batch) == BATCH:
            begin = time.perf_counter()
            step(batch)
            seconds.append(time.perf_counter() - begin)
    return seconds[WARM_UP:]


def peer(arrays: Path) -> list[float]:
    """Seconds a step of FuxiCTR."""
    seconds: list[float] = peer_says("fuxictr", "fuxictr_train.py", arrays, BATCH, STEPS, WARM_UP)
    return seconds


def measure(shape: Shape, folder: Path) -> dict[str, list[float]]:
    """Samples a second of every candidate, by round."""
    log = folder / "log.parquet"
    shape.write_log(log)
    configs = {precision: shape.config(log, precision) for precision in ("fp32", "bf16")}
    dataset = prepare(configs["fp32"].data, folder / "dataset")
    write_arrays(dataset, folder / "arrays", ["train"])
    rates: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        rates.setdefault("FuxiCTR DCNv2", []).append(BATCH / statistics.median(peer(folder / "arrays")))
        for precision, config in configs.items():
            result = train(config, dataset, folder / f"run-{precision}-{turn}")
            rates.setdefault(f"ours, {precision}", []).append(result.samples_per_s)
            seconds = {name: statistics.median(times) for name, times in parts(config, dataset).items()}
            rates.setdefault(f"bound, {precision}", []).append(BATCH / (seconds["tables"] + seconds["dense"]))
            rates.setdefault(f"limit, {precision}", []).append(BATCH / (seconds["tables"] + seconds["bare"]))
            for name, value in seconds.items():
                rates.setdefault(f"{name} alone, {precision}", []).append(BATCH / value)
    return rates


def main() -> None:
    print(machine())
    ratios: dict[str, list[float]] = {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            rates = measure(shape, Path(folder))
        median = {name: statistics.median(values) for name, values in rates.items()}
        print(f"\n{table([shape.name, 'samples/s'], [[name, spread(values)] for name, values in rates.items()])}\n")
        for precision, suffix in (("bf16", ""), ("fp32", "_fp32")):
            ours, peer_rate = median[f"ours, {precision}"], median["FuxiCTR DCNv2"]
            measured = {
                "vs_fuxictr": ours / peer_rate,
                "vs_bound": ours / median[f"bound, {precision}"],
                "limit_vs_fuxictr": median[f"limit, {precision}"] / peer_rate,
            }
            for name, ratio in measured.items():
                ratios.setdefault(f"{name}{suffix}", []).append(ratio)
    print(json.dumps({name: round(min(values), 3) for name, values in ratios.items()}))


if __name__ == "__main__":
    main()
