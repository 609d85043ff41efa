"""What is in a data set or a run, in a few figures."""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import MANIFEST, Manifest, open_directory


def kind_of(path: Path) -> str | None:
    """Which kind of directory of ours is at ``path``; ``None`` if it is none (a log, say).

    Raises:
        UserError: Its manifest is damaged.
    """
    try:
        return Manifest.read(path / MANIFEST).kind
    except (FileNotFoundError, NotADirectoryError):
        return None


def dataset_summary(path: Path) -> dict[str, Any]:
    """Splits, features, tables and label means of a data set.

    Raises:
        UserError: It is damaged.
    """
    dataset = Dataset.open(path)
    labels = dataset.labels("train")
    return {
        "log": dataset.manifest.meta["log"],
        "splits": dataset.splits,
        "refused": dataset.profile["refused"],
        "features": {
            **{feature.name: feature.kind for feature in dataset.schema.sparse},
            **{feature.name: f"{feature.width} number{'s' * (feature.width > 1)}" for feature in dataset.schema.dense},
        },
        "tables": {table.name: table.rows for table in dataset.schema.tables},
        "label_mean_in_train": dict(zip(dataset.schema.tasks, np.nanmean(labels, axis=0).tolist(), strict=True)),
        "bytes": sum(entry.bytes for entry in dataset.manifest.files.values()),
    }


def run_summary(path: Path) -> dict[str, Any]:
    """How the training of a complete run ended, and on what.

    Raises:
        UserError: It is damaged.
    """
    manifest = open_directory(path, "run")
    result = manifest.meta["result"]
    return {
        **{key: manifest.meta[key] for key in ("name", "seed", "dataset")},
        **{key: value for key, value in result.items() if key != "run"},
        "evaluated": sorted(file.stem for file in (path / "predictions").glob("*.parquet")),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
    }
