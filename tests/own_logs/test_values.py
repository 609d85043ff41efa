"""One value, one spelling: however a log, a side table or a request spells a value, it is the same value."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.features.config import DataConfig
from data_pipelines.features.fitting import fit
from data_pipelines.features.plan import Plan
from data_pipelines.features.values import BLANKS, canonical, text, texts
from data_pipelines.features.vocabulary import Vocabulary, VocabularyConfig
from data_pipelines.files.side_tables import Join
from data_pipelines.logs.joins import join

WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
TYPES: dict[str, Any] = {
    "text": pl.String,
    "float": pl.Float64,
    "categorical": pl.Categorical,
    "enum": pl.Enum([str(n) for n in range(-9, 100)]),
    "unsigned": pl.UInt64,
    "decimal": pl.Decimal(38, 0),
    "cents": pl.Decimal(10, 2),
}


def read(values: pl.Series) -> list[str | None]:
    return values.to_frame("x").select(text(pl.col("x"), values.dtype)).to_series().to_list()


@given(WHOLE, st.integers(1, 4), st.text(BLANKS, max_size=2), st.text(BLANKS, max_size=2))
def test_a_whole_number_is_one_value_however_it_is_written(n: int, zeros: int, before: str, after: str) -> None:
    spellings = [f"{before}{n}{after}", f"{before}{n}.{'0' * zeros}{after}"]
    assert read(pl.Series(spellings)) == [str(n), str(n)]
    assert read(pl.Series([float(n)])) == read(pl.Series([n])) == [str(n)]
    assert read(pl.Series([Decimal(n)], dtype=pl.Decimal(38, 0))) == [str(n)]
    assert read(pl.Series([Decimal(n)], dtype=pl.Decimal(38, 6))) == [str(n)]


@given(st.lists(st.one_of(st.none(), st.text(max_size=5), st.from_regex(r"-?[0-9]{1,3}(\.0{1,3})?", fullmatch=True))))
def test_canonical_text_is_its_own_canonical_text(values: list[str | None]) -> None:
    once = canonical(pl.Series(values, dtype=pl.String))
    assert canonical(once).to_list() == once.to_list()
    assert [one for one in once if one == ""] == []


@given(st.lists(st.text(max_size=4), min_size=1))
def test_a_value_does_not_depend_on_the_others_of_its_column(values: list[str]) -> None:
    assert canonical(pl.Series(values)).to_list() == [canonical(pl.Series([value])).item() for value in values]


@pytest.mark.parametrize(
    "code",
    ["017", "017.0", "00.0", "17.5", "1.10", "1.2.0", "v1.0", "1e5", "+7.0", ".0", "truE", "NaN", "a b", "3.00x"],
)
def test_codes_stay_as_they_are(code: str) -> None:
    assert read(pl.Series([code])) == [code]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([True, False, None]), ["true", "false", None]),
        (pl.Series(["True", "TRUE", " true ", "False", "FALSE"]), ["true", "true", "true", "false", "false"]),
        (pl.Series(["", "  ", "\u00a0"]), [None, None, None]),
        (pl.Series(["-0.0", "0.0", "0"]), ["0", "0", "0"]),
        (pl.Series([-0.0, float("nan"), 0.5]), ["0", None, "0.5"]),
        (pl.Series([Decimal("0.50"), Decimal("100.00")], dtype=pl.Decimal(10, 2)), ["0.5", "100"]),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), ["18446744073709551615"]),
        (pl.Series([" a", "True"], dtype=pl.Categorical), ["a", "true"]),
    ],
)
def test_other_types_have_one_spelling_too(values: pl.Series, expected: list[str | None]) -> None:
    assert read(values) == expected


def test_elements_of_bags_are_spelled_as_single_values_are() -> None:
    frame = pl.DataFrame({"cut": ["17.0| a |True|", "", None], "list": [["17.0", " a ", "True"], [], None]})
    frame = frame.with_columns(literal=pl.Series(["[17.0, ' a ', True]", "[]", None]))
    read = frame.select(
        cut=texts(pl.col("cut"), pl.String(), "|"),
        list=texts(pl.col("list"), frame.schema["list"], None),
        literal=texts(pl.col("literal"), pl.String(), None),
    )
    for name in read.columns:
        assert read[name].to_list() == [["17", "a", "true"], [], []]


@pytest.mark.parametrize("left", TYPES)
@pytest.mark.parametrize("right", TYPES)
@pytest.mark.parametrize("time", [None, "since"])
def test_a_side_table_is_joined_whatever_the_types_of_its_key(left: str, right: str, time: str | None) -> None:
    rows = pl.DataFrame({"k": ["7", "8", None]}).with_columns(pl.col("k").cast(TYPES[left]), t=100)
    side = pl.DataFrame({"k": ["8", "7"], "v": [80, 70], "since": [1, 2]}).with_columns(pl.col("k").cast(TYPES[right]))
    joined = join(rows.lazy(), side.lazy(), Join(table="side", on="k", time=time), "t").collect()
    assert joined["v"].to_list() == [70, 80, None]
    assert joined["k"].dtype == TYPES[left]


def log(n: int = 600) -> pl.DataFrame:
    user = [i * 7 % 13 for i in range(n)]
    return pl.DataFrame(
        {
            "time": [1_700_000_000 + 60 * i for i in range(n)],
            "user": user,
            "item": [i * 5 % 11 for i in range(n)],
            "vip": [u % 2 == 0 for u in user],
            "click": [int((i * 31) % 7 < 2) for i in range(n)],
        }
    )


DISGUISES = {
    "float": log().with_columns(pl.col("user", "item").cast(pl.Float64)),
    "pandas": log().with_columns(
        pl.col("user").cast(pl.Float64).cast(pl.String),
        pl.when("vip").then(pl.lit("True")).otherwise(pl.lit("False")).alias("vip"),
    ),
    "blanks": log().with_columns(pl.format(" {} ", pl.col("user", "item")), pl.col("vip").cast(pl.String) + " "),
    "warehouse": log().with_columns(
        pl.col("time", "user", "click").cast(pl.Decimal(38, 0)), pl.col("item").cast(pl.Decimal(10, 2))
    ),
    "categorical": log().with_columns(pl.col("user", "item").cast(pl.String).cast(pl.Categorical)),
    "unsigned": log().with_columns(pl.col("user", "item").cast(pl.UInt64)),
}


def config(path: Path) -> DataConfig:
    past = {"kind": "history", "of": ["item"], "where": "click = 1", "last": 5, "entity": "user"}
    return DataConfig.model_validate(
        {
            "log": str(path),
            "time": "time",
            "user": "user",
            "keys": ["user", "item"],
            "tasks": {"click": {"column": "click"}},
            "features": {
                **{name: {"kind": "id"} for name in ("user", "item", "vip")},
                "pair": {"kind": "cross", "of": ["user", "vip"]},
                "past": past,
                "seen": {"kind": "statistic", "measure": "count", "by": ["user"]},
            },
        }
    )


def encoded(dataset: Dataset) -> pl.DataFrame:
    frame = dataset.frame("train")
    return frame.select(name for name in frame.collect_schema().names() if not name.startswith("key:")).collect()


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_log_in_disguise_gives_the_same_data_set(disguise: str, format: str, tmp_path: Path) -> None:
    log().write_parquet(tmp_path / "plain.parquet")
    path = tmp_path / f"disguised.{format}"
    getattr(DISGUISES[disguise], f"write_{format}")(path)
    plain, other = (prepare(config(file), tmp_path / file.stem) for file in (tmp_path / "plain.parquet", path))
    assert encoded(plain).equals(encoded(other))
    for table in ("user", "item", "vip", "pair"):
        assert plain.encoder.vocabulary(table).equals(other.encoder.vocabulary(table))
    raw = log().tail(50).select("time", "user", "item", "vip")
    rows = [state.attach(raw.lazy()) for state in (plain.state, other.state) if state is not None]
    assert plain.encoder.encode(rows[0]).collect().equals(other.encoder.encode(rows[1]).collect())


SPELLED = st.one_of(
    st.none(),
    st.sampled_from(["", " ", "True", "TRUE ", "017", "nan"]),
    st.from_regex(r" ?-?[0-9]{1,2}(\.0{0,2})? ?", fullmatch=True),
    st.text(max_size=3),
)


@settings(max_examples=30)
@given(st.lists(SPELLED, min_size=1, max_size=30), st.lists(SPELLED, max_size=30), st.integers(1, 4))
def test_ids_and_counts_of_text_are_those_of_its_canonical_text(
    train: list[str | None], rows: list[str | None], oov_buckets: int
) -> None:
    log = pl.DataFrame({"x": pl.Series(train, dtype=pl.String)})
    features = {"x": {"kind": "id", "oov_buckets": oov_buckets}}
    data = {"log": "log", "tasks": {"y": {"column": "y"}}, "features": features}
    fitted = fit(Plan.of(DataConfig.model_validate(data)), log.lazy()).tables["x"]
    counted = log.select(value=text(pl.col("x"), pl.String())).group_by("value").agg(count=pl.len())
    rule = VocabularyConfig(table="x", oov_buckets=oov_buckets)
    plain = Vocabulary.fit([counted], rule)
    assert isinstance(fitted, Vocabulary)
    assert fitted.frame().equals(plain.frame())
    asked = pl.DataFrame({"x": pl.Series([*rows, *train], dtype=pl.String)})
    slow = asked.select(plain.ids(text(pl.col("x"), pl.String())))
    assert asked.select(fitted.ids_of_text(pl.col("x"))).to_series().equals(slow.to_series())
