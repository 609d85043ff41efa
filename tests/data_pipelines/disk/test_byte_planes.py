"""Packed tensors and values come back as they were, and take few bytes; damaged streams take no memory."""

import json
import lzma

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.disk import byte_planes as packing
from data_pipelines.disk.byte_planes import pack, pack_values, packing_order, unpack, unpack_about, unpack_values
from data_pipelines.errors import UserError
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


def stream(header: object, content: bytes = b"", *, size: int | None = None) -> bytes:
    """A packed stream of any header, which may lie about its ``size``."""
    text = json.dumps(header).encode()
    return lzma.compress((len(text) if size is None else size).to_bytes(8, "little") + text + content)


HOSTILE = {
    "a small stream of gigabytes": lambda: stream({"about": "", "tensors": {"t": ["uint8", [1 << 40]]}}),
    "zeros that shrink without end": lambda: stream(
        {"about": "", "tensors": {"t": ["uint8", [1 << 27]]}}, bytes(1 << 22)
    ),
    "a long header": lambda: stream({}, size=1 << 60),
    "a header that is cut": lambda: stream({}, size=1 << 20),
    "fewer bytes than declared": lambda: stream({"about": "", "tensors": {"t": ["float32", [3]]}}, b"abc"),
    "more bytes than declared": lambda: stream({"about": "", "tensors": {"t": ["uint8", [3]]}}, b"abcd"),
    "bytes after the stream": lambda: stream({"about": "", "tensors": {}}) + b"x",
    "a negative shape": lambda: stream({"about": "", "tensors": {"t": ["uint8", [-3, -1]]}}, b"abc"),
    "an unknown type": lambda: stream({"about": "", "tensors": {"t": ["load", [3]]}}, b"abc"),
    "a header of another kind": lambda: stream([1, 2]),
    "no stream": lambda: b"abc",
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_damaged_streams_are_refused_before_memory_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, taken = HOSTILE[kind](), []
    take = packing._Stream._take
    monkeypatch.setattr(packing._Stream, "_take", lambda self, size: taken.append(part := take(self, size)) or part)
    with pytest.raises((ValueError, lzma.LZMAError)):
        unpack(packed)
    assert sum(map(len, taken)) < 1 << 20


def test_a_decoder_that_asks_for_gigabytes_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    whole = lzma.decompress(pack({}, ""))
    # The size of the dictionary is a byte of the block header, which the check sum after it covers.
    with pytest.raises((lzma.LZMAError, MemoryError)):
        unpack(lzma.compress(whole, filters=filters))


def test_what_no_reader_would_unpack_is_not_packed() -> None:
    with pytest.raises(UserError, match=r"export\.packed"):
        pack({"zeros": torch.zeros(100 << 20, dtype=torch.uint8)}, "")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_stream_is_refused_or_gives_tensors(data: st.DataObject) -> None:
    packed = bytearray(pack({"a": torch.arange(40).view(8, 5), "b": torch.zeros(3)}, "about"))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(packed))
    except (ValueError, lzma.LZMAError):
        return


@pytest.mark.parametrize(
    "packed",
    [
        {"0:length": [3, -1], "0:letters": [97, 98]},
        {"0:length": [1, 9], "0:letters": [97, 98]},
        {"0:length": [1], "0:letters": [255]},
        {"0:length": [1]},
        {"x:number": [1]},
        {"0:number": [1, 2], "1:number": [1]},
    ],
)
def test_values_that_do_not_fit_together_are_refused(packed: dict[str, list[int]]) -> None:
    kinds = {"letters": np.uint8}
    tensors = {
        name: torch.from_numpy(np.array(part, kinds.get(name.partition(":")[2], np.int16)))
        for name, part in packed.items()
    }
    with pytest.raises((ValueError, LookupError, pl.exceptions.PolarsError)):
        unpack_values(tensors)
