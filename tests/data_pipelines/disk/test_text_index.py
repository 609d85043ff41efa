"""Every index of texts finds what a dict finds, and a file that was tampered with never leads out of its bytes."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from data_pipelines.disk import text_index
from data_pipelines.disk.text_index import EnumIndex, HashedTexts, MappedTexts, TextIndex
from data_pipelines.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mapped(texts: pl.Series, folder: Path) -> MappedTexts:
    MappedTexts.write(texts, folder / "texts.safetensors")
    return MappedTexts(folder / "texts.safetensors")


def found(index: TextIndex, asked: list[str | None]) -> list[int | None]:
    rows = pl.DataFrame({"asked": pl.Series(asked, dtype=pl.String)})
    return rows.select(index.places(pl.col("asked"))).to_series().to_list()


@PROPERTY
@given(
    texts=st.lists(TEXT, unique=True, max_size=60),
    others=st.lists(st.none() | TEXT, max_size=30),
    bits=st.integers(0, 12),
)
def test_every_index_finds_what_a_dict_finds(
    texts: list[str], others: list[str | None], bits: int, tmp_path: Path
) -> None:
    asked = [*others, *texts, None, *texts[:3]]
    known = {text: place for place, text in enumerate(texts)}
    expected = [None if text is None else known.get(text) for text in asked]
    series = pl.Series("value", texts, dtype=pl.String)
    with pytest.MonkeyPatch.context() as patch:
        # prints of few bits: different texts have equal ones, and searches are long
        patch.setattr(text_index, "_LARGEST_PRINT", np.uint64((1 << bits) - 1))
        file = mapped(series, tmp_path)
        for index in (EnumIndex(series), HashedTexts(series), file):
            assert found(index, asked) == expected
    assert len(file) == len(texts)
    assert file.texts.equals(series)


def test_an_index_of_many_texts_is_that_of_a_slice(tmp_path: Path) -> None:
    every = pl.select(pl.format("user-{}", pl.int_range(50_000) * 7_919)).to_series()
    texts = every.slice(11, 30_000)
    asked = every.sample(2_000, seed=1)
    known = {text: place for place, text in enumerate(texts.to_list())}
    places = [known.get(text) for text in asked.to_list()]
    for index in (HashedTexts(texts), mapped(texts, tmp_path)):
        assert found(index, asked.to_list()) == places


@pytest.mark.parametrize("kind", [EnumIndex, HashedTexts])
def test_a_text_twice_is_refused(kind: Callable[[pl.Series], TextIndex]) -> None:
    with pytest.raises(UserError, match="damaged"):
        kind(pl.Series("value", ["a", "b", "a"]))


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no slots": lambda t: t.pop("slots"),
    "another tensor": lambda t: t.update(more=np.zeros(3, np.uint8)),
    "no room for an end": lambda t: t.update(slots=np.zeros(len(t["slots"]), np.uint64)),
    "few slots": lambda t: t.update(slots=t["slots"][-3:]),
    "signed slots": lambda t: t.update(slots=t["slots"].astype(np.int64)),
    "a matrix": lambda t: t.update(letters=t["letters"][None]),
    "no offsets": lambda t: t.update(offsets=t["offsets"][:0]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_of_other_tensors_is_refused(kind: str, tmp_path: Path) -> None:
    mapped(pl.Series("value", ["a", "bc", "def"]), tmp_path)
    path = tmp_path / "texts.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    DAMAGE[kind](tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match="damaged") as refused:
        MappedTexts(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("size", [0, 7, 60, -1])
def test_a_file_that_was_cut_is_refused(size: int, tmp_path: Path) -> None:
    mapped(pl.Series("value", ["a", "bc", "def"]), tmp_path)
    path = tmp_path / "texts.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="damaged"):
        MappedTexts(path)


@PROPERTY
@given(
    name=st.sampled_from(["slots", "offsets", "letters"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=40),
)
def test_changed_numbers_give_places_or_an_error(name: str, changes: list[tuple[int, int]], tmp_path: Path) -> None:
    texts = [f"value {number}" for number in range(20)]
    mapped(pl.Series("value", texts), tmp_path)
    path = tmp_path / "texts.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load_file(path).items()}
    content = tensors[name].view(np.uint8)
    for at, value in changes:
        content[at % len(content)] = value
    save_file(tensors, path)
    try:
        index = MappedTexts(path)
        places = found(index, texts)
    except UserError:
        return
    assert all(place is None or 0 <= place < len(texts) for place in places)
    with suppress(UserError):
        assert len(index.texts) == len(texts)


def test_a_search_without_an_end_is_refused(tmp_path: Path) -> None:
    mapped(pl.Series("value", ["a", "bc", "def"]), tmp_path)
    path = tmp_path / "texts.safetensors"
    slots = np.zeros(10_000, np.uint64)
    slots[-1] = 2**64 - 1
    save_file(load_file(path) | {"slots": slots}, path)
    with pytest.raises(UserError, match="not sorted"):
        found(MappedTexts(path), ["a"])
