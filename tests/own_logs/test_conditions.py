"""Conditions (``where``) see the same values in every format."""

from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.features.conditions import condition, condition_columns

DOUBLE = pl.Series("x", [17.0, 5.0, None, 4.5])
SPELLINGS = {
    "floats": DOUBLE,
    "text": pl.Series("x", ["17", " 5.0 ", None, "4.5"]),
    "pandas": pl.Series("x", ["17.0", "5.0", "", "4.5"]),
    "categorical": pl.Series("x", ["17.00", "5", "", "4.5"], dtype=pl.Categorical),
    "decimal": pl.Series("x", [Decimal("17.00"), Decimal("5.00"), None, Decimal("4.50")], dtype=pl.Decimal(10, 2)),
    "nan": pl.Series("x", [17.0, 5.0, float("nan"), 4.5]),
}
TRUTH = {
    "boolean": pl.Series("x", [True, False, None]),
    "text": pl.Series("x", ["True", "FALSE", None]),
    "blanks": pl.Series("x", [" true ", "false", ""]),
    "numbers": pl.Series("x", [1, 0, None]),
    "floats": pl.Series("x", [1.0, 0.0, float("nan")]),
}


def holds(sql: str, values: pl.Series) -> list[bool | None]:
    frame = values.alias("x").to_frame()
    found = frame.lazy().select(holds=condition("a test", sql, frame.schema)).collect(engine="streaming")
    return [bool(one) for one in found["holds"]]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("x = 17", [True, False, False, False]),
        ("x = 17.0", [True, False, False, False]),
        ("x = '17'", [True, False, False, False]),
        ("x = '17.0'", [True, False, False, False]),
        ("x = ' 17 '", [True, False, False, False]),
        ("x >= 5", [True, True, False, False]),
        ("x < 5", [False, False, False, True]),
        ("x IN ('17', '5.0')", [True, True, False, False]),
        ("x IN (17, 5)", [True, True, False, False]),
        ("x BETWEEN 4.5 AND 5", [False, True, False, True]),
        ("x IS NULL", [False, False, True, False]),
        ("\"x\" = '4.5' OR x = '17'", [True, False, False, True]),
        ("x LIKE '1%'", [True, False, False, False]),
    ],
)
def test_numbers_are_compared_alike_in_every_spelling(sql: str, expected: list[bool], spelling: str) -> None:
    assert holds(sql, SPELLINGS[spelling]) == expected


@pytest.mark.parametrize("spelling", TRUTH)
@pytest.mark.parametrize("sql", ["x = true", "x = 1", "x > 0", "x = 'true'", "x"])
def test_truth_values_are_compared_alike_in_every_spelling(sql: str, spelling: str) -> None:
    if spelling in ("numbers", "floats") and sql == "x = 'true'":
        pytest.skip("the number 1 is not the text 'true'")
    assert holds(sql, TRUTH[spelling]) == [True, False, False]


def test_codes_with_leading_zeros_are_codes_beside_text_and_numbers_beside_numbers() -> None:
    codes = pl.Series("x", ["017", "17", "x17"])
    assert holds("x = '17'", codes) == [False, True, False]
    assert holds("x = '017'", codes) == [True, False, False]
    assert holds("x = 17", codes) == [True, True, False]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=8), st.integers(-3, 3))
def test_a_condition_on_numbers_is_that_of_python(values: list[int], at: int) -> None:
    bound = values[0] + at
    for series in (pl.Series(values), pl.Series(values).cast(pl.Float64), pl.Series([f"{n}.0" for n in values])):
        assert holds(f"x >= {bound}", series) == [n >= bound for n in values]
        assert holds(f"x = '{bound}'", series) == [n == bound for n in values]


def test_several_columns_and_quotes() -> None:
    frame = pl.DataFrame({"event type": ["It's", "view"], "stars": ["4.0", "5"]})
    sql = "\"event type\" = 'It''s' AND stars >= 4"
    assert condition_columns("a test", sql) == ["event type", "stars"]
    assert frame.select(condition("a test", sql, frame.schema)).to_series().to_list() == [True, False]


@pytest.mark.parametrize(
    ("sql", "said"),
    [("stars >=", "is not a SQL condition"), ("y = 1", "reads 'y', which is not a column"), ("x + 1", "does not fit")],
)
def test_conditions_that_mean_nothing_are_refused(sql: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        holds(sql, DOUBLE)
