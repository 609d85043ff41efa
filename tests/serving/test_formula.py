"""Formulas of tasks: what they compute, and what is refused."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.formula import Formula, FormulaError

TASKS = ("click", "value", "buy")
VALUES = {name: np.array([0.25, 0.5, 4.0]) + at for at, name in enumerate(TASKS)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("click * value", VALUES["click"] * VALUES["value"]),
        (" -click + 2 * (value - buy) ", -VALUES["click"] + 2 * (VALUES["value"] - VALUES["buy"])),
        ("click ** 0.5 / value", VALUES["click"] ** 0.5 / VALUES["value"]),
        ("max(click, 1, value - 1)", np.maximum(np.maximum(VALUES["click"], 1), VALUES["value"] - 1)),
        ("min(log(click), exp(-value))", np.minimum(np.log(VALUES["click"]), np.exp(-VALUES["value"]))),
        ("buy", VALUES["buy"]),
    ],
)
def test_it_computes_what_numpy_does(text: str, expected: np.ndarray) -> None:
    np.testing.assert_allclose(Formula.parse(text, TASKS)(VALUES), expected, rtol=1e-6)


def test_what_is_undefined_is_not_finite_and_nothing_is_raised() -> None:
    found = Formula.parse("log(click - 0.25) + 0 * 10 ** (1000 * click)", TASKS)(VALUES)
    assert not np.isfinite(found).any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("klick * value", "reads 'klick', which is not a task: did you mean 'click'?"),
        ("3 * 4", "reads no task: name at least one of click, value, buy"),
        ("click *", "is not a formula"),
        ("", "is not a formula"),
        ("click; value", "is not a formula"),
        ("__import__('os').system('true')", "cannot"),
        ("sqrt(click)", "holds 'sqrt(click)', which a formula cannot"),
        ("click.real", "holds 'click.real', which a formula cannot"),
        ("[click][0]", "which a formula cannot"),
        ("click if value else buy", "which a formula cannot"),
        ("click > value", "which a formula cannot"),
        ("(lambda: click)()", "which a formula cannot"),
        ("max(click)", "max() takes 2 values or more, not 1"),
        ("log(click, value)", "log() takes one value, not 2"),
        ("max(click, value, key=buy)", "which a formula cannot"),
        ("max(*click, value)", "which a formula cannot"),
        ("click * 'value'", "which a formula cannot"),
        ("click * True", "which a formula cannot"),
        ("click * 1j", "which a formula cannot"),
        ("click * 1e999", "a number that is too large"),
        ("click * 1" + "0" * 400, "a number that is too large"),
        ("click + " * 100 + "click", "has 805 characters, more than 500"),
        ("(" * 250 + "click" + ")" * 240, "is not a formula"),
    ],
)
def test_everything_else_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(FormulaError) as error:
        Formula.parse(text, TASKS)
    assert sentence in str(error.value)


@given(st.text(alphabet="clikvaue*+-/()., 12<>=[]{}'\"\\\n\t\0", max_size=60))
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    with suppress(FormulaError):
        Formula.parse(text, TASKS)(VALUES)
