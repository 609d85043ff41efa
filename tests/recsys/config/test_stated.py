"""A plan without a data set: tables as large as the user says."""

import re
from typing import Any

import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from recsys.config.stated import stated_lengths, stated_numbers, stated_schema

SIZES = {"item": 300.0, "device": 3.0, "tags": 12.0}


@pytest.fixture
def data(tiny_data: dict[str, Any]) -> DataConfig:
    past = {"seen": {"kind": "history", "of": ["item"], "last": 5, "age": True}}
    features = tiny_data["features"] | {"user": {"kind": "hash", "rows": 500_000_000}} | past
    return DataConfig.model_validate(tiny_data | {"features": features})


def test_stated_sizes_give_the_schema_of_such_a_data_set(data: DataConfig, tmp_path) -> None:
    made = prepare(data, tmp_path / "dataset").schema
    known = {table.name: float(table.rows - table.reserved) for table in made.tables}
    stated = stated_schema(data, {name: known[name] for name in SIZES})
    assert stated == made
    assert stated.table("user").rows > 500_000_000


def test_ids_are_one_per_row_and_histories_as_long_as_they_can_be(data: DataConfig) -> None:
    lengths = stated_lengths(data, {"tags": 2.5})
    assert lengths == {"user": 1, "item": 1, "device": 1, "tags": 2.5, "seen.item": 5, "seen.age": 5}


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ({"device": 3.0, "tags": 12.0}, "--values item=1e6, or set data.features.item.max_size"),
        (SIZES | {"itme": 3.0}, "--values itme: there is no such table; the tables are"),
        (SIZES | {"item": 5e9}, "the table 'item' would have 5,000,000,000 values"),
    ],
)
def test_what_is_not_stated_is_refused(data: DataConfig, sizes: dict[str, float], error: str) -> None:
    with pytest.raises(UserError, match=re.escape(error)):
        stated_schema(data, sizes)


def test_lengths_and_numbers_are_checked(data: DataConfig) -> None:
    with pytest.raises(UserError, match="length of the bag 'tags' is not known"):
        stated_lengths(data, {})
    with pytest.raises(UserError, match="--length tag: there is no such sparse feature"):
        stated_lengths(data, {"tags": 1, "tag": 1})
    assert stated_numbers("--values", ["user=5e8"]) == {"user": 5e8}
    for text in ("user", "user=many", "user=0", "user=nan", "user=-1"):
        with pytest.raises(UserError, match=f"--values {text}: write a name"):
            stated_numbers("--values", [text])
