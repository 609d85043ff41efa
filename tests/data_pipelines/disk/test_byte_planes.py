"""Packed tensors and values come back as they were, and take few bytes."""

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.disk.byte_planes import pack, pack_values, packing_order, unpack, unpack_about, unpack_values
from data_pipelines.names import SEPARATOR

TEXT = st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=5)
NUMBER = st.one_of(st.integers(-(10**17), 10**17), st.integers(-300, 300)).map(str)


@settings(max_examples=60, deadline=None)
@given(
    values=st.one_of(*(st.lists(part, unique=True, max_size=30) for part in (TEXT, NUMBER, st.one_of(TEXT, NUMBER))))
)
def test_values_come_back_in_their_order(values: list[str]) -> None:
    series = pl.Series("value", values, dtype=pl.String)
    ordered = series[packing_order(series)]
    packed = pack(pack_values(ordered), "about")
    tensors, about = unpack(packed)
    assert about == unpack_about(packed) == "about"
    assert unpack_values(tensors).to_list() == ordered.to_list()
    assert sorted(ordered.to_list()) == sorted(values)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(NUMBER, TEXT, st.integers(-5, 5).map(str)), unique=True, max_size=40))
def test_crossed_values_come_back(pairs: list[tuple[str, str, str]]) -> None:
    series = pl.Series("value", [SEPARATOR.join(pair) for pair in pairs], dtype=pl.String)
    assert unpack_values(pack_values(series)).to_list() == series.to_list()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.zeros(0, 5, dtype=torch.uint8),
        torch.randn(3, 4, 5).bfloat16(),
        torch.randn(7),
        torch.tensor([True, False]),
        torch.arange(6).view(2, 3),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_tensors_come_back(tensor: torch.Tensor) -> None:
    back = unpack(pack({"a": tensor, "b": tensor}, ""))[0]
    assert back["a"].dtype == tensor.dtype
    assert torch.equal(back["a"], tensor)
    assert torch.equal(back["b"], tensor)


def test_sorted_numbers_cost_about_a_byte_and_pairs_hardly_more() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randperm(100_000, generator=generator)[:5000]
    singles = pl.Series([str(n) for n in numbers.tolist()])
    pairs = pl.Series([f"{n // 500}{SEPARATOR}{n % 500}" for n in numbers.tolist()])
    for values in (singles, pairs):
        assert len(pack(pack_values(values[packing_order(values)]), "")) < 1.3 * len(values)
