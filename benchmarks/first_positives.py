"""The part of ``benchmarks.first`` on logs of positives only: ``init`` untouched, ranked over all items.

The purchases of an online shop go the way of a newcomer. For every user of the test split all items are ranked, and the
recall of the first 20 is compared with that of ``own_repeats``: what the user took most often, then what is popular
recently.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import real_data, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.profile.inspection import LogProfile, inspect_log
from data_pipelines.profile.starter.config import starter_config
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import read_yaml
from recsys.evaluation.ranking import rank
from recsys.training.train import train

DATA = "online-retail"
K = 20
FIGURES = ("recall", "ndcg", "repeats_recall", "less_repeats_low", "less_repeats_high")


def content_of_init(profile: LogProfile, file: Path) -> dict[str, Any]:
    """What ``init`` writes for a log, to ``file``."""
    file.write_text(starter_config(profile))
    return read_yaml(file)


def measure_retail(seeds: int) -> dict[str, Any]:
    """Means over the seeds of :data:`FIGURES` by split, and the training minutes; empty if the log is not at hand.

    The ends of the interval are means too: each is that of the difference for the users at one seed.
    """
    data = real_data(DATA)
    if data is None:
        return {}
    log = next(data.glob("*.parquet"))
    found: dict[str, list[list[float]]] = {"valid": [], "test": []}
    minutes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = content_of_init(inspect_log(str(log)), folder / "init.yaml")
        dataset = prepare(parse_config(ExperimentConfig, content, source="init").data, folder / "dataset")
        for seed in range(seeds):
            config = parse_config(ExperimentConfig, content | {"seed": seed}, source="init")
            began = time.process_time()
            run = folder / f"run-{seed}"
            train(config, dataset, run)
            minutes.append((time.process_time() - began) / 60)
            for split, rows in found.items():
                rows.append(_figures(run, dataset, split))
    means = {split: np.mean(rows, axis=0).round(4).tolist() for split, rows in found.items()}
    result: dict[str, Any] = {split: dict(zip(FIGURES, values, strict=True)) for split, values in means.items()}
    return result | {"seeds": seeds, "minutes": round(float(np.mean(minutes)), 1)}


def _figures(run: Path, dataset: Dataset, split: str) -> list[float]:
    segment = rank(run, dataset, split, k=K).segments["all"]
    ours, repeats = segment["model"], segment["own_repeats"]
    return [ours["recall"], ours["ndcg"], repeats["recall"], *repeats["recall_difference"]]


def retail_table(retail: dict[str, Any]) -> str:
    """The figures of :func:`measure_retail`, a line per split."""
    rows = [
        [split, *(f"{retail[split][key]:.4f}" for key in FIGURES[:3]), _interval(retail[split])]
        for split in ("valid", "test")
    ]
    return table([DATA, f"recall@{K}", f"ndcg@{K}", "own repeats", "recall less own repeats"], rows)


def _interval(figures: dict[str, float]) -> str:
    return f"{figures['less_repeats_low']:+.4f} to {figures['less_repeats_high']:+.4f}"
