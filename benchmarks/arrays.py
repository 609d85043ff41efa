"""Encoded splits as plain arrays, so that peers in environments of their own learn from what our models learn from."""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader


def write_arrays(dataset: Dataset, folder: Path, splits: Collection[str], without: Collection[str] = ()) -> None:
    """Write the sparse features of splits and the first task's label.

    ``SPLIT/NAME.npy`` holds a feature's ids, one per row, or (N, width) for a bag or a history, padded with 0;
    ``SPLIT/label.npy`` the labels; ``features.json`` each feature's kind, table, rows of the table, and width.

    Args:
        without: Features that are left out.
    """
    features = [spec for spec in dataset.schema.sparse if spec.name not in without]
    widths: dict[str, int] = {}
    for split in splits:
        (folder / split).mkdir(parents=True)
        (batch,) = Loader(dataset, split, batch_size=dataset.splits[split])
        assert batch.labels is not None
        np.save(folder / split / "label.npy", batch.labels[:, 0].numpy())
        for spec in features:
            ids = batch.sparse[spec.name].to_padded_dense().numpy()
            widths[spec.name] = max(widths.get(spec.name, 0), ids.shape[1])
            np.save(folder / split / f"{spec.name}.npy", ids[:, 0] if spec.kind == "id" else ids)
    description = {
        spec.name: {
            "kind": spec.kind,
            "table": spec.table,
            "rows": dataset.schema.table(spec.table).rows,
            "width": widths[spec.name],
        }
        for spec in features
    }
    (folder / "features.json").write_text(json.dumps(description))
