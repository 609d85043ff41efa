"""Summaries of data sets and runs, in a few figures."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.unseen import unseen_shares
from data_pipelines.disk.storage import MANIFEST, Manifest, open_directory
from recsys.evaluation.table_ranks import TableRanks
from recsys.training.results import Result
from serving.artifact.card import Value


def kind_of(path: Path) -> str | None:
    """The kind of the directory at ``path``; ``None`` if `recsys` did not write it (a log, for example).

    Raises:
        UserError: Its manifest is damaged.
    """
    try:
        return Manifest.read(path / MANIFEST).kind
    except (FileNotFoundError, NotADirectoryError):
        return None


class DatasetSummary(BaseModel):
    """A data set in a few figures.

    Attributes:
        log: Where its rows are from.
        splits: Rows of each split.
        refused: Rows refused, by reason.
        left_out: Rows that the condition `data.where` left out.
        features: Kind of each encoded feature.
        tables: Rows of each table.
        label_mean_in_train: By task.
        unseen: By id and bag feature, the share of the latest rows' ids that training did not see, where it is not 0.
        null: By id feature, the share of the latest rows that are null, where it is not 0.
        side_tables: By side table, the share of the rows that have no row in it.
        bytes: On disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    log: Any
    splits: dict[str, int]
    refused: Any
    left_out: int
    features: dict[str, str]
    tables: dict[str, int]
    label_mean_in_train: dict[str, Value]
    unseen: dict[str, float]
    null: dict[str, float]
    side_tables: dict[str, float]
    bytes: int


class RunSummary(BaseModel):
    """How the training of a complete run ended, and on what.

    Attributes:
        name: Of the experiment.
        seed: Of the training.
        dataset: Where the data set was.
        evaluated: Splits whose predictions are kept.
        effective_rank: How many dimensions each table uses, where the run was evaluated.
        bytes: On disk.

    The other fields are those of :class:`~recsys.training.results.Result`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    seed: int
    dataset: str
    steps: int
    best_step: int
    stopped: str
    valid: dict[str, dict[str, Value]]
    value: float | None
    seconds: float
    samples_per_s: Value
    notes: tuple[str, ...]
    evaluated: list[str]
    effective_rank: TableRanks
    bytes: int


def dataset_summary(path: Path) -> DatasetSummary:
    """Splits, features, tables and label means of a data set.

    Raises:
        UserError: It is damaged.
    """
    dataset = Dataset.open(path)
    labels = dataset.labels("train")
    latest = next((split for split in ("test", "valid") if dataset.splits[split]), "train")
    shares = unseen_shares(dataset.schema, dataset.frame(latest))
    sparse = {feature.name: str(feature.kind) for feature in dataset.schema.sparse}
    dense = {feature.name: f"{feature.width} number{'s' * (feature.width > 1)}" for feature in dataset.schema.dense}
    return DatasetSummary(
        log=dataset.manifest.meta["log"],
        splits=dataset.splits,
        refused=dataset.profile["refused"],
        left_out=dataset.profile.get("left_out", 0),
        features=sparse | dense,
        tables={table.name: table.rows for table in dataset.schema.tables},
        label_mean_in_train=dict(zip(dataset.schema.tasks, np.nanmean(labels, axis=0).tolist(), strict=True)),
        unseen={name: unknown for name, (_, unknown) in shares.items() if unknown},
        null={name: null for name, (null, _) in shares.items() if null},
        side_tables=dataset.profile.get("side_tables", {}),
        bytes=sum(entry.bytes for entry in dataset.manifest.files.values()),
    )


def run_summary(path: Path) -> RunSummary:
    """How the training of a complete run ended, and on what.

    Raises:
        UserError: It is damaged.
    """
    manifest = open_directory(path, "run")
    result = Result.model_validate(manifest.meta["result"] | {"run": path})
    return RunSummary(
        **{key: manifest.meta[key] for key in ("name", "seed", "dataset")},
        **result.model_dump(exclude={"run"}),
        evaluated=sorted(file.stem for file in (path / "predictions").glob("*.parquet")),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
    )
