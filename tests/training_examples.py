"""What tests of trainings share: changed configs, commands, and what a run holds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import torch

from recsys.config.experiment import ExperimentConfig
from recsys.runs.checkpoints import read_tensors


def configure(experiment: dict[str, Any], **changes: Any) -> ExperimentConfig:
    """The experiment with some ``block__key=value`` changed."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in experiment.items()}
    for name, value in changes.items():
        block, _, key = name.partition("__")
        if key:
            content.setdefault(block, {})[key] = value
        else:
            content[block] = value
    return ExperimentConfig.model_validate(content)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / "final", "")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def losses_of(run: Path) -> list[tuple[int, float]]:
    """Training losses by step, as they were logged."""
    kept = pl.read_parquet(run / "metrics.parquet").filter(pl.col("metric") == "loss")
    return list(kept.select("step", "value").iter_rows())


def command(*arguments: str | Path, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else ["-P"]
    return [sys.executable, *launcher, "-m", "recsys", *map(str, arguments)]


def run_command(*arguments: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if ranks > 1:
        arguments = (*arguments, "train.device=cpu")  # ranks do not share a GPU
    return subprocess.run(command(*arguments, ranks=ranks), capture_output=True, text=True, env=environment)
