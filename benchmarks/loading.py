"""How fast the loader is: alone, and by what a trainer loses that waits for it.

The trainer is the fastest there is, in bfloat16: the faster it is, the more it asks of the loader. Within one training
it takes turns: some batches as the loader makes them, then as many that were all in memory before the first of them.
Turns are of a few seconds, so that what else the machine does hits neighbours alike; the first of an epoch, in which
things are set up, is not counted.
"""

import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from recsys.config.experiment import ExperimentConfig
from recsys.training.train import train

FEATURES, ROWS, BATCH = 26, 1_100_000, 4096
TURN, WARM_UP = 37, 5
"""Steps of a turn, and how many of them pass before it is timed."""


def measure_loader(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Rows a second: ``alone``, and turn by turn of ``training`` and ``training, batches in memory``."""
    experiment = wide_experiment(folder, rounds)
    dataset = prepare(experiment.data, folder / "wide")
    waiting, ready = train_rates(experiment, dataset)
    return {
        "alone": [loader_rate(dataset) for _ in range(rounds)],
        "training": waiting,
        "training, batches in memory": ready,
    }


def wide_experiment(folder: Path, epochs: int) -> ExperimentConfig:
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
            "train": {"epochs": epochs, "batch_size": BATCH, "precision": "bf16"},
        }
    )


def loader_rate(dataset: Dataset) -> float:
    """Rows a second of the loader alone, one thread, shuffled."""
    loader = Loader(dataset, "train", batch_size=BATCH, shuffle=True, threads=1)
    begin = time.perf_counter()
    rows = sum(len(batch) for batch in loader)
    return rows / (time.perf_counter() - begin)


class _InTurns(Loader):
    """The loader, whose every other ``TURN`` batches are all in memory before the first of them is handed out."""

    def __iter__(self) -> Iterator[Batch]:
        made = super().__iter__()
        for turn in range(-(-len(self) // TURN)):
            batches = islice(made, TURN)
            yield from (batches if turn % 2 else list(batches))


def train_rates(config: ExperimentConfig, dataset: Dataset) -> tuple[list[float], list[float]]:
    """Rows a second, waiting for batches included, of the turns that waited for the loader and of those after them."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder, patch("recsys.training.trainer.Loader", _InTurns):
        train(config, dataset, Path(folder, "run"), on_step=lambda rows, note: ends.append(time.perf_counter()))
    epochs = np.array(ends).reshape(config.train.epochs, -1)
    counted = epochs[:, TURN:]
    pairs = counted.shape[1] // (2 * TURN)
    turns = counted[:, : 2 * TURN * pairs].reshape(-1, 2, TURN)
    waiting, ready = BATCH * (TURN - 1 - WARM_UP) / (turns[:, :, -1] - turns[:, :, WARM_UP]).T
    return waiting.tolist(), ready.tolist()
