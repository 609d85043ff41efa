"""The effective ranks that evaluate, inspect and the report show."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from models.ranker import RankerConfig
from models.tables.plan import lookup_plan
from models.weights import Weights
from recsys.evaluation.table_ranks import (
    RANKS_FILE,
    read_table_ranks,
    shown_ranks,
    table_ranks,
    write_table_ranks,
)


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(DataConfig.model_validate(tiny_data), tmp_path_factory.mktemp("ranks") / "dataset")


def _weights(dataset: Dataset) -> Weights:
    """Random tables; those of users have one direction for seen values, and others for null and OOV."""
    torch.manual_seed(0)
    config = RankerConfig.model_validate({"dim": 4, "wide": True})
    layouts = lookup_plan(dataset.schema, config).tables
    tables = {layout.name: torch.randn(layout.rows, layout.dim) for layout in layouts}
    users, reserved = tables["user"], dataset.schema.table("user").reserved
    users[reserved:] = users[reserved:, :1] * torch.tensor([1.0, 2.0, -1.0, 0.5])
    return Weights(config, dataset.schema, tables, {})


def test_tables_are_measured_as_training_saw_their_rows(dataset: Dataset) -> None:
    weights = _weights(dataset)
    ranks = table_ranks(weights, dataset)
    assert ranks.keys() == {"user", "item", "device", "tags"}  # not those of the wide part
    assert ranks["user"].rank == pytest.approx(1, abs=1e-3)
    assert 3 < ranks["item"].rank <= 4
    assert ranks["item"].dim == 4
    weights.tables["item"], weights.factors["item"] = weights.tables["item"][:, :2], torch.randn(2, 4)
    assert table_ranks(weights, dataset)["item"].rank < 2.001


def test_ranks_are_kept_with_a_run_and_shown(dataset: Dataset, tmp_path: Path) -> None:
    assert read_table_ranks(tmp_path) == {}
    ranks = table_ranks(_weights(dataset), dataset)
    write_table_ranks(tmp_path, ranks)
    assert read_table_ranks(tmp_path) == ranks
    assert shown_ranks(ranks, as_json=False)["user"] == "1.0 of 4"
    assert shown_ranks(ranks, as_json=True)["user"] == {"rank": ranks["user"].rank, "dim": 4}
    (tmp_path / RANKS_FILE).write_text("{")
    with pytest.raises(UserError, match=RANKS_FILE):
        read_table_ranks(tmp_path)
