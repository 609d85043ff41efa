"""A large vocabulary stays on disk, and does what one in memory does."""

import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.features import vocabulary_files
from data_pipelines.features.vocabulary import MappedVocabulary, Vocabulary, VocabularyConfig
from data_pipelines.features.vocabulary_files import read_vocabulary, vocabulary, write_vocabulary

VALUES = [*map(str, range(40)), "a", "é", "日本", "with space", "a" * 300]


@pytest.fixture
def plain() -> Vocabulary:
    return Vocabulary(pl.Series("value", VALUES), pl.zeros(len(VALUES), pl.Int64, eager=True), oov_buckets=3)


@pytest.fixture
def mapped(plain: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vocabulary:
    (tmp_path / "vocabularies").mkdir()
    monkeypatch.setattr(vocabulary_files, "_SMALL", len(VALUES) - 1)
    write_vocabulary(tmp_path, "a/b", plain, slim=True)
    return vocabulary("a/b", read_vocabulary(tmp_path, "a/b"), 3)


def test_ids_of_text_and_of_numbers_are_those_of_the_vocabulary_in_memory(
    plain: Vocabulary, mapped: Vocabulary
) -> None:
    asked = pl.DataFrame({"x": [*VALUES, "none", None, " 7", "7.0", "12.00", ""]})
    for table in (plain, mapped):
        table.warm()
    assert asked.select(mapped.ids(pl.col("x"))).equals(asked.select(plain.ids(pl.col("x"))))
    assert asked.select(mapped.ids_of_text(pl.col("x"))).equals(asked.select(plain.ids_of_text(pl.col("x"))))
    slots = pl.DataFrame({"x": [0, 39, 40, None]})
    assert slots.select(mapped.slot_ids(pl.col("x"))).equals(slots.select(plain.slot_ids(pl.col("x"))))
    bags = pl.DataFrame({"x": [["1", None, "none"], [], None]})
    ids = (bags.select(pl.col("x").list.eval(table.ids(pl.element()))) for table in (plain, mapped))
    assert next(ids).equals(next(ids))


def test_looking_values_up_reads_no_other_values(mapped: Vocabulary) -> None:
    mapped.warm()
    pl.DataFrame({"x": ["7", "none"]}).select(mapped.ids(pl.col("x")))
    assert mapped.rows == 4 + len(VALUES)
    assert "values" not in vars(mapped)


def test_all_that_is_made_of_a_vocabulary_is_the_same(plain: Vocabulary, mapped: Vocabulary) -> None:
    assert isinstance(mapped, MappedVocabulary)
    assert mapped.frame().equals(plain.frame())
    keep = np.arange(plain.rows) % 3 != 0
    assert mapped.prune(keep).frame().equals(plain.prune(keep).frame())
    assert pickle.loads(pickle.dumps(mapped)).frame().equals(plain.frame())
    counted = [pl.DataFrame({"value": ["new", "7"], "count": [2, 5]})]
    rule = VocabularyConfig(table="x", oov_buckets=3)
    assert Vocabulary.fit(counted, rule, mapped).frame().equals(Vocabulary.fit(counted, rule, plain).frame())


def test_a_file_that_links_elsewhere_is_refused(mapped: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "vocabularies" / "a%2Fb.safetensors"
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="link"):
        read_vocabulary(tmp_path, "a/b")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["", "user-", "éé"]), st.dictionaries(TEXT | TEXT.map("12345678".__add__), st.integers(1, 3)))
def test_values_are_in_descending_order_of_their_count_then_by_value(prefix: str, counts: dict[str, int]) -> None:
    values = {prefix + value: count for value, count in counts.items()}
    counted = pl.DataFrame({"value": pl.Series(list(values), dtype=pl.String), "count": pl.Series(values.values())})
    fitted = Vocabulary.fit([counted], VocabularyConfig(table="x"))
    expected = sorted(values, key=lambda value: (-values[value], value.encode()))
    assert fitted.values.to_list() == expected
    assert fitted.counts.to_list() == [values[value] for value in expected]
