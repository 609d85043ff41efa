"""Encoding is one function of (value, vocabulary)."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan

TEXT = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["", " ", "a", "é", "007", "7", "NaN", "日本"]))
HUGE = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3))
FLOATS = st.one_of(st.none(), st.floats(width=64), st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1e300]))
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make(features: dict[str, Any]) -> DataConfig:
    return DataConfig.model_validate({"log": "unused", "tasks": {"y": {"column": "y"}}, "features": features})


KINDS = make(
    {
        "name": {"kind": "id", "column": "s", "oov_buckets": 3},
        "number": {"kind": "id", "column": "i", "max_size": 4},
        "real": {"kind": "id", "column": "f", "min_count": 2},
        "tags": {"kind": "bag", "column": "l", "max_length": 3, "table": "name", "oov_buckets": 3},
        "codes": {"kind": "bag", "column": "li"},
        "pair": {"kind": "cross", "of": ["name", "number"]},
        "pairs": {"kind": "cross", "of": ["number", "tags"]},
        "hashed": {"kind": "hash", "column": "s", "rows": 50, "hashes": 2},
        "price": {"kind": "number", "column": "f", "transform": "standardize", "clip": [-10, 10], "indicator": True},
        "log": {"kind": "number", "column": "f", "transform": "log1p"},
        "bucket": {"kind": "number", "column": "f", "transform": "buckets", "buckets": 4},
    }
)
PLAN = Plan.of(KINDS)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "s": TEXT,
            "i": HUGE,
            "f": FLOATS,
            "l": st.one_of(st.none(), st.lists(TEXT, max_size=4)),
            "li": st.one_of(st.none(), st.lists(HUGE, max_size=4)),
        }
    ),
    min_size=1,
    max_size=12,
)
TYPES = {"s": pl.String, "i": pl.Int64, "f": pl.Float64, "l": pl.List(pl.String), "li": pl.List(pl.Int64)}


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=TYPES)


@PROPERTY
@given(train=ROWS, rows=ROWS)
def test_a_row_does_not_depend_on_its_batch(train: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    encoder = Encoder.fit(PLAN, frame(train).lazy())
    together = encoder.encode(frame(rows).lazy()).collect()
    alone = pl.concat([encoder.encode(frame([row]).lazy()).collect() for row in rows])
    assert_frame_equal(together, alone)
    assert_frame_equal(together, encoder.encode(frame(rows).lazy()).collect(engine="streaming"))
    assert_frame_equal(together, encoder.encode_few(frame(rows)))


@PROPERTY
@given(train=ROWS, rows=ROWS)
def test_ids_lie_in_their_tables(train: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    encoder = Encoder.fit(PLAN, frame(train).lazy())
    encoded = encoder.encode(frame(rows).lazy()).collect()
    for feature in encoder.schema.sparse:
        ids = encoded[feature.name]
        ids = ids if feature.kind == "id" else ids.explode().drop_nulls()
        assert encoded[feature.name].null_count() == 0
        assert ids.is_between(0, encoder.schema.table(feature.table).rows - 1).all()
    for dense in encoder.schema.dense:
        assert np.isfinite(encoded[dense.name].to_numpy()).all()


@PROPERTY
@given(train=ROWS)
def test_round_trip_of_ids(train: list[dict[str, Any]]) -> None:
    encoder = Encoder.fit(PLAN, frame(train).lazy())
    for feature, column in (("name", "s"), ("number", "i")):
        vocabulary = encoder.vocabulary(feature)
        values = frame([{column: None}]).clear().select(column)
        values = pl.DataFrame({column: vocabulary["value"].cast(values.schema[column])})
        rows = pl.concat([values, frame([{}]).drop(column).clear()], how="diagonal")
        assert encoder.encode(rows.lazy()).collect()[feature].to_list() == vocabulary["id"].to_list()


@PROPERTY
@given(train=ROWS, rows=ROWS)
def test_saved_and_loaded_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, train: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("encoder")
    encoder = Encoder.fit(PLAN, frame(train).lazy())
    encoder.save(folder)
    loaded = Encoder.load(folder)
    assert loaded.schema == encoder.schema
    assert_frame_equal(encoder.encode(frame(rows).lazy()).collect(), loaded.encode(frame(rows).lazy()).collect())


@PROPERTY
@given(train=ROWS, rows=ROWS, data=st.data())
def test_pruned_values_become_oov_and_the_rest_keep_their_order(
    train: list[dict[str, Any]], rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    encoder = Encoder.fit(PLAN, frame(train).lazy())
    keep = {
        table.name: np.array(data.draw(st.lists(st.booleans(), min_size=table.rows, max_size=table.rows)))
        for table in encoder.schema.tables
    }
    pruned = encoder.prune(keep)
    before, after = (e.encode(frame(rows).lazy()).collect() for e in (encoder, pruned))
    for feature in encoder.schema.sparse:
        table = encoder.schema.table(feature.table)
        mask = keep[table.name] | (np.arange(table.rows) < table.reserved)
        renumbered = np.cumsum(mask) - 1
        assert pruned.schema.table(table.name).rows == mask.sum()
        old, new = (f[feature.name].explode(empty_as_null=False).to_numpy() for f in (before, after))
        spared = mask[old]
        assert (new[spared] == renumbered[old[spared]]).all()
        assert ((new[~spared] >= 1) & (new[~spared] < table.reserved)).all()
        assert len(old) == len(new)


def test_ids_are_null_then_oov_then_values_by_falling_count() -> None:
    config = make({"x": {"kind": "id", "min_count": 2, "oov_buckets": 2}})
    train = pl.DataFrame({"x": ["b", "b", "a", "a", "c", "c", "c", "rare", None, None, None, None]})
    encoder = Encoder.fit(Plan.of(config), train.lazy())
    assert encoder.vocabulary("x").rows() == [("c", 3, 3), ("a", 4, 2), ("b", 5, 2)]
    ids = encoder.encode(pl.LazyFrame({"x": ["c", "a", "b", None]})).collect()["x"].to_list()
    assert ids == [3, 4, 5, 0]
    assert set(encoder.encode(pl.LazyFrame({"x": ["rare", "new", "-", "z"]})).collect()["x"]) <= {1, 2}


def test_the_same_value_in_any_type_has_the_same_id() -> None:
    config = make({"x": {"kind": "id"}, "l": {"kind": "bag", "table": "x", "delimiter": "|"}})
    encoder = Encoder.fit(Plan.of(config), pl.LazyFrame({"x": ["7", "8"], "l": ["7|8", ""]}))
    wanted = [2, 3, 0, 1]
    for column in (["7", "8", None, "9"], [7, 8, None, 9], [7.0, 8.0, None, 9.5]):
        rows = pl.LazyFrame({"x": column, "l": [[value] for value in column]})
        encoded = encoder.encode(rows).collect()
        assert encoded["x"].to_list() == wanted
        assert encoded["l"].explode().to_list() == wanted


def test_few_rows_have_their_constants_and_lists() -> None:
    config = DataConfig.model_validate(
        {
            "log": "unused",
            "tasks": {"y": {"column": "y"}},
            "group": ["query"],
            "features": {
                "position": {"kind": "id", "serve": 1},
                "price": {"kind": "number"},
                "dearer": {"kind": "relative", "of": "price"},
            },
        }
    )
    rows = pl.DataFrame({"query": [1, 1, 2], "position": [1, 2, 1], "price": [3.0, 5.0, 4.0]})
    encoder = Encoder.fit(Plan.of(config), rows.lazy()).as_served()
    for some in (rows, rows.clear()):
        assert_frame_equal(encoder.encode_few(some), encoder.encode(some.lazy()).collect())
    assert encoder.encode_few(rows)["position"].to_list() == [2, 2, 2]


@pytest.mark.parametrize(
    ("column", "delimiter"),
    [
        (["a|b||a", "", None, "|"], "|"),
        (["[a, b, a]", "[]", None, " "], None),
        (["['a', \"b\", 'a']", "()", None, ""], None),
        ([["a", "b", "a"], [], None, []], None),
        ([["a ", "b", "\ta"], [], None, []], None),
    ],
)
def test_bags_in_any_form(column: list[Any], delimiter: str | None) -> None:
    config = make({"x": {"kind": "bag", "delimiter": delimiter}})
    encoder = Encoder.fit(Plan.of(config), pl.LazyFrame({"x": column}))
    assert encoder.encode(pl.LazyFrame({"x": column})).collect()["x"].to_list() == [[2, 3, 2], [], [], []]


def test_weights_numbers_times_and_vectors() -> None:
    config = DataConfig.model_validate(
        {
            "log": "unused",
            "time": "t",
            "tasks": {"y": {"column": "y"}},
            "features": {
                "tags": {"kind": "bag", "weights": "w", "max_length": 2},
                "price": {"kind": "number", "transform": "standardize", "indicator": True},
                "when": {"kind": "time", "parts": ["hour", "weekday", "day", "month", "cyclic"]},
                "born": {"kind": "time", "parts": ["age"], "column": "born"},
                "image": {"kind": "vector", "width": 2},
            },
        }
    )
    rows = pl.LazyFrame(
        {
            "tags": [["a", "b", "c"], None],
            "w": [[1.0, 0.5, 2.0], None],
            "price": [3.0, None],
            "t": ["2024-01-31T23:30:00Z", "1970-01-01"],
            "born": ["2024-01-30T23:30:00+00:00", None],
            "image": [[0.5, -1.0], None],
        }
    )
    encoder = Encoder.fit(Plan.of(config), rows)
    encoded = encoder.encode(rows).collect()
    assert encoder.schema.dense_width == 2 + 4 + 1 + 2
    assert encoded["tags:weights"].to_list() == [[1.0, 0.5], []]
    assert encoded["price"].to_list() == [[0.0, 0.0], [0.0, 1.0]]
    slots = [encoded[f"when.{part}"].to_list() for part in ("hour", "weekday", "day", "month")]
    assert slots == [[2 + 23, 2], [2 + 2, 2 + 3], [2 + 30, 2], [2, 2]]
    thursday = 3 / 7 * 2 * np.pi
    waves = [0, 1, np.sin(thursday), np.cos(thursday)]
    np.testing.assert_allclose(encoded["when.cyclic"].to_numpy()[1], waves, atol=1e-6)
    np.testing.assert_allclose(encoded["born.age"].to_numpy(), [np.log(2), 0], rtol=1e-6)
    assert encoded["image"].to_list() == [[0.5, -1.0], [0.0, 0.0]]


def test_select_takes_features_by_either_name() -> None:
    config = DataConfig.model_validate(
        {
            "log": "unused",
            "time": "t",
            "tasks": {"y": {"column": "y"}},
            "features": {"a": {"kind": "id"}, "b": {"kind": "id"}, "when": {"kind": "time"}},
        }
    )
    rows = pl.LazyFrame({"a": ["x"], "b": ["y"], "t": [0]})
    encoder = Encoder.fit(Plan.of(config), rows)
    assert encoder.select(["b", "when"]).schema.feature_names == ("b", "when.hour", "when.weekday")
    chosen = encoder.select(["when.hour"])
    assert chosen.encode(rows.select("t")).collect().columns == ["when.hour"]
    with pytest.raises(UserError, match="no feature is named 'c'"):
        encoder.select(["c"])


@pytest.mark.parametrize(
    ("feature", "column", "sentence"),
    [
        ({"kind": "id"}, [[1]], "single values"),
        ({"kind": "bag"}, [1], "lists, or text"),
        ({"kind": "number"}, [[1.0]], "numbers"),
        ({"kind": "time", "column": "x"}, [True], "times"),
        ({"kind": "vector", "width": 2}, ["a"], "lists of numbers"),
    ],
)
def test_wrong_types_are_named(feature: dict[str, Any], column: list[Any], sentence: str) -> None:
    def encode() -> None:
        rows = pl.LazyFrame({"x": column})
        Encoder.fit(Plan.of(make({"x": feature})), rows).encode(rows)

    with pytest.raises(UserError, match=f"feature 'x' reads the column 'x', which is .*{sentence}"):
        encode()


def test_a_missing_column_is_named() -> None:
    encoder = Encoder.fit(Plan.of(make({"x": {"kind": "id"}})), pl.LazyFrame({"x": ["a"]}))
    with pytest.raises(UserError, match="feature 'x' reads the column 'x', which is not there; there are z"):
        encoder.encode(pl.LazyFrame({"z": [1]}))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    encoder = Encoder.fit(Plan.of(make({"x": {"kind": "id"}})), pl.LazyFrame({"x": ["a"]}))
    with pytest.raises(UserError, match="table 'x' has 3 rows"):
        encoder.prune({"x": np.ones(2, bool)})
