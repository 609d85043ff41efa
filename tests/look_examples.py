"""Generated logs and what ``inspect`` and ``init`` make of them."""

from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import polars as pl

from data_pipelines.profile.columns import Column
from data_pipelines.profile.inspection import LogProfile, inspect_log
from data_pipelines.profile.starter.config import starter_config
from recsys.config.experiment import ExperimentConfig, load_config

ROWS = 4000


def log(**columns: Any) -> pl.DataFrame:
    """An honest log over forty days, with some more columns."""
    rng = np.random.default_rng(0)
    own = {
        "time": 1_700_000_000 + np.arange(ROWS) * 864,
        "user": [f"u{n}" for n in rng.integers(0, 90, ROWS)],
        "item": [f"i{n}" for n in rng.integers(0, 40, ROWS)],
        "click": (rng.random(ROWS) < 0.3).astype(int),
    }
    return pl.DataFrame(own | columns)


def looked_at(folder: Path, frame: pl.DataFrame, **options: Any) -> LogProfile:
    frame.write_parquet(folder / "log.parquet")
    return inspect_log(str(folder / "log.parquet"), **options)


def column(profile: LogProfile, name: str) -> Column:
    return profile.column(name)


def started(profile: LogProfile) -> ExperimentConfig:
    """The config that ``init`` writes, parsed as every verb parses it."""
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(starter_config(profile))
        file.flush()
        return load_config(file.name)


def why(profile: LogProfile, name: str) -> str:
    return "; ".join(profile.column(name).suspicions)
