"""Guesses from names and values: what each column of a log seems to be."""

import re
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.times import epoch
from data_pipelines.features.values import is_missing
from data_pipelines.logs.splits import NAMED_SPLITS
from data_pipelines.profile import words
from data_pipelines.profile.labels import find_label
from data_pipelines.profile.types import CODE, SURE_SHARE

Role = (
    Literal["label", "time", "user", "item", "id", "bag", "number", "vector"]
    | Literal["text", "json", "index", "constant", "split", "unknown"]
)

_NAMELESS = re.compile(r"(|Unnamed: \d+|_duplicated_\d+|index|row_?(nr|id|num|number)?)", re.IGNORECASE)
_SURE_DELIMITERS, _LIKELY_DELIMITERS = ("|", ";"), (",",)
_LIST = r"^\s*[\[(].*[\])]\s*$"
_JSON = r"^\s*(\{.*\}|\[\s*\{.*\}\s*\])\s*$"
_LOOKED_AT = 1000
_FEW_VALUES = 20
_RUNNING_ROWS = 50
_EARLIEST, _LATEST, _SHORTEST = 946_684_800, 2_000_000_000, 600
"""Seconds since 1970 that a column without a telling name may hold: 2000 to 2033, over ten minutes at least."""
_LONG_TEXT = 4
"""Words per value, on average, from which text is free text and no id."""


@dataclass
class Roles:
    """The role of every column; which is the label, the time, the user, the item; and delimiters of bags as text.

    ``label_note`` says how the label was guessed, where its name does not tell.
    """

    of: dict[str, Role]
    label: str | None = None
    label_note: str = ""
    time: str | None = None
    user: str | None = None
    item: str | None = None
    delimiters: dict[str, str] = field(default_factory=dict)

    def columns(self, *roles: Role) -> list[str]:
        """The columns of some roles."""
        return [name for name, role in self.of.items() if role in roles]

    @property
    def split(self) -> str | None:
        """The column that says which rows are for training and which for the test."""
        return next(iter(self.columns("split")), None)


def guess_roles(
    sample: pl.DataFrame,
    rows: int,
    *,
    label: str | None = None,
    time: str | None = None,
    user: str | None = None,
    item: str | None = None,
) -> Roles:
    """What each column of a log of ``rows`` rows seems to be, by its name, type and values in ``sample``.

    Raises:
        UserError: A column that is named is not there.
    """
    for option, name in {"--label": label, "--time": time, "--user": user, "--item": item}.items():
        if name is not None and name not in sample.columns:
            raise UserError(f"{option}: there is no column {name!r}; there are {', '.join(sample.columns)}.")
    roles = Roles({}, label=label, time=time, user=user)
    for name in sample.columns:
        roles.of[name] = _role(sample[name], rows, roles)
    others = sample.drop(name for name in {time, user, item} if name is not None)
    if label is None:
        candidates = [name for name in roles.columns("id", "number") if name in others.columns]
        roles.label, roles.label_note = find_label(others, candidates)
    if roles.label is not None:
        roles.of[roles.label] = "label"
    times = roles.columns("time")
    roles.time = time or words.named(times, words.TIMES) or next(iter(times), None)
    ids = [name for name in roles.columns("id") if name not in (time, item)]
    roles.user = user or words.named(ids, words.USERS, exact=True)
    roles.item = item or words.named([name for name in ids if name != roles.user], words.ITEMS, exact=True)
    known: tuple[tuple[str | None, Role], ...] = ((roles.time, "time"), (roles.user, "user"), (roles.item, "item"))
    roles.of.update({name: role for name, role in known if name is not None})
    return roles


def _role(column: pl.Series, rows: int, roles: Roles) -> Role:
    values, dtype = column.drop_nulls(), column.dtype
    if isinstance(dtype, pl.Array):
        return "vector"
    if isinstance(dtype, pl.List):
        lengths = values.list.len()
        floats = dtype.inner is not None and dtype.inner in (pl.Float32, pl.Float64)
        return "vector" if floats and lengths.n_unique() == 1 and len(values) > 1 else "bag"
    if dtype in (pl.Struct, pl.Binary, pl.Object):
        return "unknown"
    distinct = values.n_unique()
    if distinct <= 1 and rows > 1:
        return "constant"
    if dtype.is_temporal():
        return "time"
    if isinstance(dtype, pl.Decimal) and (values == values.round()).all():  # as warehouses write whole numbers
        values = values.cast(pl.Int64, strict=False)
    if dtype == pl.Boolean:
        return "id"
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        return _text_role(values.cast(pl.String), distinct, roles)
    whole = not dtype.is_float() or (values.is_finite() & (values == values.round())).all()
    return _whole_role(values, distinct, len(column)) if whole else "number"


def _whole_role(values: pl.Series, distinct: int, rows: int) -> Role:
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    integers = values.dtype.is_integer()
    if integers and set(words.words(values.name)) & set(words.TIMES) and 1e8 < low <= high < 2e18 and high < low * 100:
        return "time"
    keyed = words.is_category(values.name) or set(words.words(values.name)) & set(words.BASKETS)
    if integers and not keyed and _keeps_time(values, low, high):
        return "time"
    if integers and distinct == rows and (_NAMELESS.fullmatch(values.name) or _runs(values)):
        return "index"
    if words.is_category(values.name):
        return "id"
    few = integers and low >= -1 and distinct <= max(_FEW_VALUES, len(values) // 1000)
    return "id" if few and not words.is_quantity(values.name) else "number"


def _keeps_time(values: pl.Series, low: float, high: float) -> bool:
    """Whether ``values`` (of rows in their order, from ``low`` to ``high``) are times since 1970 in one direction.

    They are seconds or milliseconds, and rise from row to row, or fall, or stay.
    """
    since = [unit for unit in (1, 1000) if _EARLIEST * unit <= low <= high <= _LATEST * unit]
    if not since or len(values) < _RUNNING_ROWS or high - low < _SHORTEST * since[0]:
        return False
    steps = values.diff().drop_nulls()
    return bool((steps >= 0).all() or (steps <= 0).all())


def _runs(values: pl.Series) -> bool:
    """Whether ``values`` (of rows in their order) are running numbers: from 0 or 1 on in steps, or ever rising."""
    steps = values.cast(pl.Int64, strict=False).diff().drop_nulls()
    if len(values) <= 2 or not len(steps):
        return False
    one_step = steps.n_unique() == 1 and steps[0] > 0 and values[0] in (0, 1)
    return one_step or (len(values) >= _RUNNING_ROWS and bool((steps > 0).all() or (steps < 0).all()))


def _text_role(values: pl.Series, distinct: int, roles: Roles) -> Role:
    if _is_split(values, distinct):
        return "split"
    some = values.head(_LOOKED_AT)
    given = some.filter(~is_missing(some))
    if given.is_empty():
        return "constant" if is_missing(values).all() else "id"
    numbers = given.str.strip_chars().cast(pl.Float64, strict=False).is_finite().fill_null(False).mean()
    codes = words.is_category(values.name) or given.str.contains(CODE).any()
    if isinstance(numbers, float) and numbers >= SURE_SHARE and not codes:
        return "number"
    dated = given.filter(given.str.contains(r"^\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}"))
    times = dated.to_frame().select(epoch(pl.col(dated.name), pl.String())).to_series().count()
    if times >= SURE_SHARE * len(given):
        return "time"
    if given.str.contains(_JSON).all() or given.str.starts_with("{").all():
        return "json"
    if given.str.contains(_LIST).all():
        return "bag"
    delimiter = _delimiter(values, distinct)
    if delimiter is not None:
        roles.delimiters[values.name] = delimiter
        return "bag"
    length = some.str.count_matches(r"\S+").mean()
    assert isinstance(length, float)
    return "text" if length > _LONG_TEXT and distinct * 2 > len(values) else "id"


def _is_split(values: pl.Series, distinct: int) -> bool:
    if distinct > len(NAMED_SPLITS):
        return False
    found = {NAMED_SPLITS.get(value.strip().lower()) for value in values.unique()}
    return None not in found and "train" in found and len(found) > 1


def _delimiter(values: pl.Series, distinct: int) -> str | None:
    """What separates the elements of lists that are written as text; ``None`` where a value is one value."""
    for delimiter in (*_SURE_DELIMITERS, *_LIKELY_DELIMITERS):
        parts = values.str.split(delimiter)
        several = (parts.list.len() > 1).mean()
        assert isinstance(several, float)
        if several > 0.1 and (delimiter in _SURE_DELIMITERS or parts.explode().n_unique() * 2 < distinct):
            return delimiter
    codes = values.head(_LOOKED_AT).str.strip_chars().str.split(" ")
    elements = codes.explode()
    several = (codes.list.len() > 1).mean()
    assert isinstance(several, float)
    coded = elements.str.contains(r"^\S*\d\S*$").mean()
    assert isinstance(coded, float)
    return " " if several > 0.1 and coded >= 0.9 and elements.n_unique() * 2 < len(elements) else None


def role_reason(role: Role, *, empty: bool) -> str | None:
    """Why a column of a role is not a feature; ``None`` where it may be one.

    Args:
        empty: Whether all its values say that there is none, such as ``NA``.
    """
    match role:
        case "index":
            return "is a running number, which says nothing about a new row"
        case "constant":
            return "has no value in any row" if empty else "has one value only: no model can learn from it"
        case "text":
            return "is free text, which no kind reads: give its embedding (kind vector) or its tags (kind bag)"
        case "json":
            return "holds JSON or key-value text, which no kind reads: write its keys as columns of their own"
        case "split":
            return "says which rows are for training and test"
        case "unknown":
            return "has a type that no kind reads"
        case _:
            return None
