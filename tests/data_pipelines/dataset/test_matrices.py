"""The CSR view: equal to counting by hand, and back."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from polars.testing import assert_frame_equal

from data_pipelines.dataset import matrices
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = DataConfig.model_validate(tiny_data)
    return prepare(config, tmp_path_factory.mktemp("matrices") / "dataset")


def test_counts_of_values_stand_in_their_columns(dataset: Dataset) -> None:
    matrix, names = matrices.to_csr(dataset, "test")
    frame = dataset.frame("test").collect()
    assert matrix.shape == (dataset.splits["test"], len(names))
    assert len(set(names)) == len(names)
    vocabulary = dict(dataset.encoder.vocabulary("tags").select("value", "id").iter_rows())
    dense = matrix.toarray()
    for value, number in vocabulary.items():
        expected = frame["tags"].list.count_matches(number).to_numpy()
        np.testing.assert_array_equal(dense[:, names.index(f"tags={value}")], expected)
    np.testing.assert_allclose(dense[:, names.index("price")], frame["price"].to_numpy(), rtol=1e-6)
    assert dense[:, names.index("device=<null>")].sum() == (frame["device"] == 0).sum() > 0


def test_there_and_back(dataset: Dataset) -> None:
    matrix, _ = matrices.to_csr(dataset, "train")
    back = matrices.from_csr(matrix, dataset.schema)
    frame = dataset.frame("train").select(back.columns).collect().with_columns(pl.col("tags").list.sort())
    assert_frame_equal(back, frame)


def test_some_features_only(dataset: Dataset) -> None:
    whole, names = matrices.to_csr(dataset, "valid")
    part, part_names = matrices.to_csr(dataset, "valid", ["tags", "price"])
    kept = [i for i, name in enumerate(names) if name.split("=")[0] in ("tags", "price")]
    assert part_names == [names[i] for i in kept]
    assert (part != whole[:, kept]).nnz == 0


def test_saved_with_its_names(dataset: Dataset, tmp_path: Path) -> None:
    matrix, names = matrices.to_csr(dataset, "test")
    matrices.save(tmp_path / "test.npz", matrix, names)
    loaded, loaded_names = matrices.load(tmp_path / "test.npz")
    assert loaded_names == names
    assert (loaded != matrix).nnz == 0
    assert (sp.load_npz(tmp_path / "test.npz") != matrix).nnz == 0


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a saved matrix"):
        matrices.load(tmp_path / "x.npz")
