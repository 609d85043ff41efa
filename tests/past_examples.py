"""Small logs with an event key, and an artifact that counts the events of a user."""

from pathlib import Path

import polars as pl
import torch

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.features.config import DataConfig
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from models.weights import Weights
from serving.artifact.artifact import write_artifact
from serving.artifact.card import ModelCard


def keyed_config(log: Path, **keys: object) -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": str(log),
            "time": "t",
            "tasks": {"y": {"column": "y"}},
            "split": {"by": "random", "valid": 0, "test": 0},
            "event_key": ["id"],
            "event_window": 25,
            "features": {"u": {"kind": "id"}, "n": {"kind": "statistic", "measure": "count", "by": ["u"]}},
            **keys,
        }
    )


def keyed_log(ids: list[int]) -> pl.DataFrame:
    """Event ``id`` happened at second ``id``."""
    return pl.DataFrame({"id": ids, "u": 1, "t": [10**9 + number for number in ids], "y": [n % 2 for n in ids]})


def write_random_artifact(dataset: Dataset, out: Path) -> Path:
    """An artifact of random weights with the past of ``dataset``."""
    config = RankerConfig.model_validate({"dim": 2, "tower": {"kind": "mlp", "hidden": [4]}})
    tables = {t.name: torch.randn(t.rows, t.dim) for t in lookup_plan(dataset.schema, config).tables}
    ranker = Ranker(config, dataset.schema, PlainTables(dataset.schema, config, tables, {}, {}))
    weights = Weights(config, dataset.schema, tables, ranker.dense_state())
    write_artifact(weights, dataset.encoder, dataset.path / "state", ModelCard(name="x"), out)
    return out
