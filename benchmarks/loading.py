"""How fast the loader is: alone, and by what a trainer loses that waits for it.

The trainer is the fastest there is, in bfloat16: the faster it is, the more it asks of the loader. It trains with the
loader, and with the same batches all in memory, in turns.
"""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from benchmarks.common import in_turns
from data_pipelines.batch import Batch
from data_pipelines.dataset import Dataset, prepare
from data_pipelines.loader import Loader
from recsys.config import ExperimentConfig
from recsys.training import train

FEATURES, ROWS, BATCH = 26, 1_000_000, 4096
TRAINED_ROWS, WARM_UP = 500_000, 5


def measure_loader(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Rows a second, round after round: ``alone``, ``training`` and ``training, batches in memory``."""
    experiment = wide_experiment(folder)
    dataset = prepare(experiment.data, folder / "wide")
    trained = partial(train_rate, experiment, dataset)
    candidates = {
        "alone": partial(loader_rate, dataset),
        "training": partial(trained, _Trained),
        "training, batches in memory": partial(trained, _Ready),
    }
    return in_turns(candidates, rounds)


def wide_experiment(folder: Path) -> ExperimentConfig:
    """A log of 26 ids a row, and DCNv2 over them in bfloat16."""
    rng = np.random.default_rng(0)
    columns = {f"f{i:02}": (10_000 * rng.random(ROWS) ** 3).astype(np.int64) for i in range(FEATURES)}
    log = folder / "wide.parquet"
    pl.DataFrame(columns | {"y": rng.integers(0, 2, ROWS)}).write_parquet(log)
    return ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(log),
                "tasks": {"y": {"column": "y"}},
                "split": {"by": "random", "valid": 0, "test": 0},
                "features": {name: {"kind": "id"} for name in columns},
            },
            "model": {
                "dim": 16,
                "interaction": {"kind": "cross", "layers": 3},
                "tower": {"kind": "mlp", "hidden": [400, 400]},
            },
            "train": {"epochs": 1, "batch_size": BATCH, "precision": "bf16"},
        }
    )


def loader_rate(dataset: Dataset) -> float:
    """Rows a second of the loader alone, one thread, shuffled."""
    loader = Loader(dataset, "train", batch_size=BATCH, shuffle=True, threads=1)
    begin = time.perf_counter()
    rows = sum(len(batch) for batch in loader)
    return rows / (time.perf_counter() - begin)


class _Trained(Loader):
    """The loader, ended early."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords, max_rows=TRAINED_ROWS)


class _Ready(_Trained):
    """The same batches, all in memory before the first is handed out."""

    def __iter__(self) -> Iterator[Batch]:
        yield from list(super().__iter__())


def train_rate(config: ExperimentConfig, dataset: Dataset, loader: type[Loader]) -> float:
    """Rows a second from the end of the first steps to that of the last, waiting for batches included."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder, patch("recsys.training.Loader", loader):
        train(config, dataset, Path(folder, "run"), report=lambda rows, note: ends.append(time.perf_counter()))
    return BATCH * (len(ends) - 1 - WARM_UP) / (ends[-1] - ends[WARM_UP])
