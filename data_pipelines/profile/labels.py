"""Which column of a log is its label, and how its values become labels: yes or no, a rating, a count, an amount."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.values import BLANKS, NO_LABEL, canonical, is_missing, label_value, number, text
from data_pipelines.profile import words
from data_pipelines.profile.types import SURE_SHARE
from data_pipelines.profile.wording import listed

LabelKind = Literal["binary", "regression", "count"]

_NO_OF_YES = {"yes": "no", "y": "n", "true": "false", "t": "f", "ja": "nein", "oui": "non", "sí": "no", "si": "no"}
_MOST_GRADES = 21
_HIGHEST_GRADE = 100
_LARGEST_COUNT = 10_000


@dataclass(frozen=True)
class Label:
    """A label of a log.

    Attributes:
        column: The column that holds it.
        kind: What it is, as a task of a config says it.
        at_least: Where it holds numbers that are made binary: those from here on are positive.
        positive: Where it holds text: the values that are positive.
        note: What was guessed about it, and how to say otherwise; empty where nothing was.
    """

    column: str
    kind: LabelKind = "binary"
    at_least: float | None = None
    positive: tuple[str, ...] = ()
    note: str = ""

    def value(self, schema: pl.Schema) -> pl.Expr:
        """Float64 label of a row; null where it has none."""
        return label_value(pl.col(self.column), schema[self.column], at_least=self.at_least, positive=self.positive)


def guess_label(frame: pl.LazyFrame, column: str, positive: Sequence[str] = (), at_least: float | None = None) -> Label:
    """How the values of a column become labels.

    Args:
        positive: Values that count as positive, as the user named them.
        at_least: Where on numbers count as positive, as the user said.

    Raises:
        UserError: ``positive`` or ``at_least`` leave one class, or the values are text that says neither yes nor no.
    """
    dtype = frame.collect_schema()[column]
    counts = (
        frame.select(value=text(pl.col(column), dtype))
        .filter(pl.col("value").is_not_null() & ~is_missing(pl.col("value"), NO_LABEL))
        .group_by("value")
        .agg(n=pl.len())
        .sort("n", "value", descending=[True, False])
        .collect(engine="streaming")
    )
    values = counts["value"].to_list()
    if len(values) < 2:
        only = f"one value, {listed(values)}" if values else "no value in any row"
        raise UserError(f"the label {column!r} has {only}: there is nothing to predict, so name another column.")
    if positive:
        return _chosen(column, values, positive)
    numbers = counts.select(number(pl.col("value"), pl.String()), "n").drop_nulls()
    if dtype == pl.Boolean:
        return Label(column)
    if len(numbers) >= SURE_SHARE * len(counts):
        return _of_numbers(column, numbers, at_least)
    if at_least is not None:
        raise UserError(f"the label {column!r} holds text ({listed(values, 3)}), and --at-least needs numbers.")
    return _of_text(column, counts)


def find_label(sample: pl.DataFrame, candidates: Sequence[str]) -> tuple[str | None, str]:
    """The column that is the label by its name and by its values; else the only one of zeros and ones.

    Args:
        candidates: The columns of ids and numbers.

    Returns:
        Its name, and what to say where the name does not tell.
    """
    binary = [name for name in sample.columns if is_binary(sample[name])]
    ratings = [
        name for name in candidates if sample[name].dtype.is_numeric() and 2 < sample[name].n_unique() <= _MOST_GRADES
    ]
    by_name = {"_".join(words.words(name)): name for name in (*ratings, *binary)}
    for hint in words.LABELS:
        if hint in by_name:
            return by_name[hint], ""
    if len(binary) == 1:
        return binary[0], "guessed: the only column of two values; --label names another"
    return None, ""


def named_like_outcome(values: pl.Series) -> bool:
    """Whether a column of two values is named like a label: ``target``, ``is_click``, ``purchased``."""
    named = set(words.words(values.name)) - {"is", "has", "was"}
    return len(named) == 1 and named <= set(words.LABELS) and is_binary(values)


def is_binary(values: pl.Series) -> bool:
    """Whether a column holds 0 and 1, true and false, or yes and no; whatever is missing left aside."""
    if values.dtype == pl.Boolean:
        return True
    if values.dtype == pl.String:
        given = values.filter(~is_missing(values, NO_LABEL))
        return bool(_affirmative(given.unique().head(3).to_list()))
    return values.dtype.is_numeric() and set(values.drop_nulls().unique().head(3).to_list()) == {0, 1}


def _chosen(column: str, values: list[str], positive: Sequence[str]) -> Label:
    bare = {_bare(value): value for value in reversed(values)}
    spelled = canonical(pl.Series(positive)).to_list()
    wanted = [value if value in values else bare.get(_bare(str(value)), value) for value in spelled]
    for given, value in zip(positive, wanted, strict=True):
        if value not in values:
            raise UserError(
                f"--positive {given!r} is not a value of the label {column!r}; its values are {listed(values)}."
            )
    if set(wanted) == set(values):
        raise UserError(f"--positive names every value of the label {column!r}: name only those that are positive.")
    others = [value for value in values if value not in wanted]
    note = f"{listed(others, 5)} count as 0: `where` leaves out those that are no answer" if len(others) > 1 else ""
    return Label(column, positive=tuple(wanted), note=note)


def _bare(value: str) -> str:
    """A value without the quotes and blanks that some files have around text: ``50000+.`` of ``' 50000+.'``."""
    return value.strip(BLANKS + "'\"")


def _of_numbers(column: str, numbers: pl.DataFrame, at_least: float | None) -> Label:
    """The label of a column of numbers, from its distinct values and how often each occurs."""
    values = numbers["value"].sort()
    low, high = float(values[0]), float(values[-1])
    if at_least is not None:
        if not low < at_least <= high:
            which = "no" if at_least > high else "every"
            raise UserError(
                f"--at-least {at_least:g}: {which} row reaches it, because the label {column!r} goes from {low:g} to "
                f"{high:g}."
            )
        return Label(column, at_least=at_least)
    if values.to_list() == [0, 1]:
        return Label(column)
    if len(values) == 2:
        return Label(column, at_least=high, note=f"guessed: {high:g} is positive, {low:g} is not")
    whole = bool((values == values.round()).all())
    most_often = numbers.sort("n", "value", descending=[True, False])["value"][0]
    counts = whole and low >= 0 and (words.is_quantity(column) or (low == 0 and most_often == 0))
    halves = bool((values * 2 == (values * 2).round()).all())
    if not counts and halves and low >= 0 and high <= _HIGHEST_GRADE and len(values) <= _MOST_GRADES:
        threshold = float(values.filter(values >= high * 0.8)[0])
        return Label(column, at_least=threshold, note="guessed from the scale; --at-least says otherwise")
    if whole and low >= 0 and high <= _LARGEST_COUNT:
        return Label(column, "count", note="guessed: whole numbers from 0; else kind: regression, or --at-least")
    return Label(column, "regression", note="guessed: amounts; --at-least makes it binary")


def _of_text(column: str, counts: pl.DataFrame) -> Label:
    values = counts["value"].to_list()
    found = _affirmative(values)
    if found:
        return Label(column, positive=found)
    if len(values) > 2:
        raise UserError(
            f"the label {column!r} holds text ({listed(values, 5)}): name the values that count as positive, each with "
            "--positive."
        )
    common, rare = values
    note = f"guessed: the rarer of its two values; for the other one, --positive {listed([common])}"
    return Label(column, positive=(rare,), note=note)


def value_of_no(values: Sequence[str]) -> str | None:
    """The value that says no, where the values are one that says yes, or 1, and one that says no, or 0."""
    found = {value.strip().lower(): value for value in values}
    return next((found[no] for yes, no in {**_NO_OF_YES, "1": "0"}.items() if found.keys() == {yes, no}), None)


def _affirmative(values: Sequence[str]) -> tuple[str, ...]:
    """The value that says yes, where the values are one that says yes and one that says no."""
    found = {value.strip().lower(): value for value in values}
    return next(((found[yes],) for yes, no in _NO_OF_YES.items() if found.keys() == {yes, no}), ())
