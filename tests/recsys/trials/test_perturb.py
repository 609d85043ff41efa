"""Taking a feature from a trained model: what changes, what stays, and who trades places with whom."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.batch import Batch
from data_pipelines.dataset.blocks import Block, make_batch
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.features.config import DataConfig
from recsys.trials.perturb import cramers_v, masked, random_order, row_codes, shuffled, strata


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    likes = {"kind": "history", "of": ["item", "tags"], "where": "click = 1", "last": 5, "age": True}
    features = {**tiny_data["features"], "likes": likes, "rating": {"kind": "number"}}
    config = DataConfig.model_validate({**tiny_data, "features": features})
    return prepare(config, tmp_path_factory.mktemp("perturb") / "dataset")


@pytest.fixture
def block(dataset: Dataset) -> Block:
    columns = dataset.columns("test")
    return columns.block([(0, len(columns))])


def _cells(batch: Batch) -> dict[str, list[Any]]:
    """One value a row for each feature of a batch."""
    cells: dict[str, list[Any]] = {"dense": batch.dense.tolist()}
    for name, bags in batch.sparse.to_dict().items():
        offsets = bags.offsets().tolist()
        values = bags.values().tolist()
        cells[name] = [values[a:b] for a, b in itertools.pairwise(offsets)]
    return cells


def _all(block: Block, dataset: Dataset) -> dict[str, list[Any]]:
    return _cells(make_batch(dataset.schema, [(block, 0, len(block))]))


@pytest.mark.parametrize("feature", ["item", "tags", "likes"])
def test_a_shuffled_feature_takes_another_rows_value_and_the_rest_stays(
    dataset: Dataset, block: Block, feature: str
) -> None:
    order = random_order(len(block), seed=1)
    before, after = _all(block, dataset), _all(shuffled(block, dataset.schema, [feature], order), dataset)
    for name, values in before.items():
        mine = name.split(".")[0] == feature
        assert after[name] == ([values[i] for i in order] if mine else values), name


def test_a_shuffled_number_moves_alone_in_the_dense_matrix(dataset: Dataset, block: Block) -> None:
    order = random_order(len(block), seed=1)
    before = np.array(_all(block, dataset)["dense"])
    after = np.array(_all(shuffled(block, dataset.schema, ["rating"], order), dataset)["dense"])
    names = [feature.name for feature in dataset.schema.dense]
    rating, price = names.index("rating"), names.index("price")
    assert (after[:, rating] == before[order, rating]).all()
    assert (after[:, price] == before[:, price]).all()


def test_features_shuffled_together_stay_together(dataset: Dataset, block: Block) -> None:
    order = random_order(len(block), seed=2)
    before, after = _all(block, dataset), _all(shuffled(block, dataset.schema, ["item", "tags"], order), dataset)
    assert list(zip(after["item"], after["tags"], strict=True)) == [
        (before["item"][i], before["tags"][i]) for i in order
    ]


def test_a_masked_feature_is_null_in_every_row(dataset: Dataset, block: Block) -> None:
    after = _all(masked(block, dataset.schema, ["item", "tags", "likes", "price"]), dataset)
    assert all(value == [0] for value in after["item"])
    assert all(value == [] for name in ("tags", "likes.item", "likes.age") for value in after[name])
    price = [feature.name for feature in dataset.schema.dense].index("price")
    assert (np.array(after["dense"])[:, price] == 0).all()
    assert after["user"] == _all(block, dataset)["user"]


def test_masked_to_oov_keeps_lengths_and_forgets_every_value(dataset: Dataset, block: Block) -> None:
    before = _all(block, dataset)
    after = _all(masked(block, dataset.schema, ["item", "tags", "likes"], oov=True), dataset)
    for name in ("item", "tags", "likes.item"):
        assert after[name] == [[1] * len(value) for value in before[name]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 100))
def test_within_strata_only_rows_of_one_stratum_trade_places(strata_list: list[int], seed: int) -> None:
    strata_N = np.array(strata_list)
    order_N = random_order(len(strata_N), seed, strata_N)
    assert sorted(order_N) == list(range(len(strata_N)))
    assert (strata_N[order_N] == strata_N).all()


def test_rows_are_alike_in_what_goes_with_the_feature(dataset: Dataset, block: Block) -> None:
    """An item has the same tags wherever it occurs, so tags are shuffled among rows of the same item."""
    _, partners = strata(block, dataset.schema, ["tags"])
    assert partners[0] == "item"


def test_cramers_v_knows_the_same_the_unrelated_and_the_rare() -> None:
    rng = np.random.default_rng(0)
    a, b, rare = rng.integers(0, 5, 2000), rng.integers(0, 5, 2000), rng.integers(0, 1500, 2000)
    assert cramers_v(a, a) == pytest.approx(1.0, abs=0.01)
    assert cramers_v(a, b) < 0.05
    assert cramers_v(a, rare) < 0.2
    assert cramers_v(a, np.zeros(2000, dtype=int)) == 0.0


def test_every_feature_has_a_code_for_each_row(dataset: Dataset, block: Block) -> None:
    codes = row_codes(block, dataset.schema)
    assert codes.keys() == set(dataset.schema.feature_names)
    assert {len(code) for code in codes.values()} == {len(block)}
