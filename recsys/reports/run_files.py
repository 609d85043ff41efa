"""What a finished run left on disk."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.names import LIST
from recsys.config.experiment import ExperimentConfig, stored_config
from recsys.evaluation.added import ADDED_FILE
from recsys.evaluation.baselines.measure import BASELINES_FILE
from recsys.evaluation.comparison import TestRows
from recsys.evaluation.experts import EXPERTS_FILE, GAINS_FILE
from recsys.evaluation.table_ranks import TableRanks, read_table_ranks
from recsys.metrics.arrays import group_codes
from recsys.metrics.rows import RowFacts


class RunFiles:
    """What a finished run left on disk, read when asked for.

    Raises:
        UserError: ``path`` is not a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} is not a run: give the folder that `recsys train` wrote.")

    @cached_property
    def config(self) -> ExperimentConfig:
        return stored_config(self.path / "config.yaml")

    @cached_property
    def history(self) -> pl.DataFrame:
        """What training measured: step, epoch, seconds, split, metric, value."""
        return pl.read_parquet(self.path / "metrics.parquet", glob=False)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name for name, task in self.config.data.tasks.items() if task.kind == "binary")

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Metrics of other models on a split, by name, where ``recsys evaluate --baselines`` measured them."""
        file = self.path / BASELINES_FILE
        return json.loads(file.read_text()).get(split, {}) if file.is_file() else {}

    @cached_property
    def table_ranks(self) -> TableRanks:
        """How many dimensions each table uses, where the run was evaluated."""
        return read_table_ranks(self.path)

    @cached_property
    def experts(self) -> pl.DataFrame | None:
        """The values that each expert serves, where a mixture was evaluated."""
        file = self.path / EXPERTS_FILE
        return pl.read_parquet(file, glob=False) if file.is_file() else None

    @cached_property
    def expert_gains(self) -> pl.DataFrame | None:
        """Where each expert beats the next best choice, where a mixture was evaluated."""
        file = self.path / GAINS_FILE
        return pl.read_parquet(file, glob=False) if file.is_file() else None

    @cached_property
    def added(self) -> pl.DataFrame | None:
        """What values of features with `serve` add to the logits, where there are any and they were evaluated."""
        file = self.path / ADDED_FILE
        return pl.read_parquet(file, glob=False) if file.is_file() else None

    def predictions(self, split: str) -> pl.DataFrame | None:
        """Rows, keys, labels and logits of an evaluated split; ``None`` if it was not evaluated."""
        file = self.path / "predictions" / f"{split}.parquet"
        return pl.read_parquet(file, glob=False) if file.is_file() else None

    def rows(self, split: str, task: str) -> tuple[TestRows, np.ndarray] | None:
        """The labelled rows of a split and this run's logits on them."""
        frame = self.predictions(split)
        if frame is None:
            return None
        user = self.config.data.user
        facts = RowFacts(
            group_codes(frame[user]) if user else None,
            *(frame[name].to_numpy() if name in frame.columns else None for name in (LIST, f"{task}:weight")),
        )
        return TestRows.of(frame[f"{task}:label"].to_numpy(), facts), frame[f"{task}:logit"].to_numpy()

    def curve(self, split: str, metric: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric while it was trained."""
        part = self.history.filter((pl.col("split") == split) & (pl.col("metric") == metric))
        part = part.unique("step", keep="first", maintain_order=True)
        return part["step"].to_list(), part["value"].to_list()
