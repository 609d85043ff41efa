"""Guesses from names and values: how a text file is delimited, and what each column of a log seems to be."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from data_pipelines.features.times import epoch
from data_pipelines.features.values import MISSING, number
from data_pipelines.files.csv import CsvFormat
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Format

Role = Literal["label", "time", "user", "item", "id", "bag", "number", "vector", "text", "index", "constant", "unknown"]

_LABELS = (
    *("label", "target", "click", "clicked", "is_click", "converted", "conversion", "purchase", "purchased", "bought"),
    *("like", "liked", "watched", "y", "outcome", "rating", "ratings", "stars", "score"),
)
_USERS = ("user", "customer", "visitor", "member", "client", "account", "session", "uid")
_ITEMS = ("item", "movie", "film", "product", "article", "video", "song", "track", "app", "book", "ad", "offer", "sku")
_TIMES = ("time", "timestamp", "ts", "date", "datetime", "when", "day", "at", "created", "updated")
_QUANTITIES = ("count", "num", "amount", "price", "qty", "quantity", "age", "length", "duration", "size", "total")
_CATEGORIES = (
    *("id", "category", "cat", "type", "code", "country", "city", "region", "zip", "genre", "brand", "kind", "group"),
    *("segment", "lang", "language", "device", "os", "browser", "campaign", "store", "channel"),
)
_OF_KEYS = {"id", "key", "code", "no", "nr", "number", "hash", "name", "uuid"}
_NAMELESS = re.compile(r"(|Unnamed: \d+|_duplicated_\d+|index|row_?(nr|id|num|number)?)", re.IGNORECASE)
_SURE_DELIMITERS, _LIKELY_DELIMITERS = ("|", ";"), (",",)
_SNIFFED_BYTES = 1 << 16
_NO_OF_YES = {"yes": "no", "y": "n", "true": "false", "t": "f", "ja": "nein", "oui": "non", "sí": "no", "si": "no"}
_SURE_SHARE = 0.99
"""Of the values of a column of numbers or times: a few may be damaged."""


@dataclass
class Roles:
    """The role of every column; which is the label, the time, the user, the item; and delimiters of bags as text."""

    of: dict[str, Role]
    label: str | None = None
    at_least: float | None = None
    positive: tuple[str, ...] = ()
    time: str | None = None
    user: str | None = None
    item: str | None = None
    delimiters: dict[str, str] = field(default_factory=dict)


def guess_format(location: str) -> Format | None:
    """How a local text file is delimited, where its name does not say so or says it wrongly; otherwise ``None``."""
    if "://" in location:
        return None
    first = Path(find_files(location)[0])
    if first.suffix not in (".csv", ".txt", ".tsv", ".dat"):
        return None
    with first.open("rb") as file:
        head = file.read(_SNIFFED_BYTES).decode("utf-8", errors="replace").splitlines()
    if not head:
        return None
    delimiter = max(",\t;|", key=lambda character: (head[0].count(character), character == ","))
    fields = next(csv.reader([head[0]], delimiter=delimiter))
    header = len(set(fields)) == len(fields) and not any(_is_number(name) for name in fields)
    guessed = CsvFormat(delimiter=delimiter, header=header)
    by_suffix = {".csv": CsvFormat(), ".tsv": CsvFormat(delimiter="\t")}.get(first.suffix)
    return None if guessed == by_suffix else guessed


def guess_roles(
    sample: pl.DataFrame, rows: int, *, label: str | None = None, time: str | None = None, user: str | None = None
) -> Roles:
    """What each column of a log of ``rows`` rows seems to be, by its name, type and values in ``sample``."""
    roles = Roles({}, label=label, time=time, user=user)
    for name in sample.columns:
        roles.of[name] = _role(sample[name], rows, roles)
    roles.label = label or _find_label(sample, roles)
    if roles.label is not None:
        roles.of[roles.label] = "label"
        values = sample[roles.label].drop_nulls()
        roles.at_least, roles.positive = _threshold(values), _affirmative(values)
    times = [name for name, role in roles.of.items() if role == "time"]
    roles.time = time or _named(times, _TIMES) or next(iter(times), None)
    ids = [name for name, role in roles.of.items() if role == "id"]
    roles.user = user or _named(ids, _USERS, exact=True)
    roles.item = _named([name for name in ids if name != roles.user], _ITEMS, exact=True)
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
    if dtype == pl.Boolean:
        return "id"
    if dtype == pl.String or dtype == pl.Categorical or isinstance(dtype, pl.Enum):
        return _text_role(values.cast(pl.String), distinct, roles)
    if dtype.is_integer():
        counts_rows = distinct == len(column) and (_NAMELESS.fullmatch(values.name) or _counts_up(values))
        return "index" if counts_rows else _integer_role(values, distinct)
    whole = dtype.is_float() and (values.is_finite() & (values == values.round())).all()
    return "id" if whole and _words(values.name) & {*_CATEGORIES, *_USERS, *_ITEMS} else "number"


def _integer_role(values: pl.Series, distinct: int) -> Role:
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    words = _words(values.name)
    if words & set(_TIMES) and 1e8 < low <= high < 2e18 and high < low * 100:
        return "time"
    if words & {*_CATEGORIES, *_USERS, *_ITEMS}:
        return "id"
    few = low >= 0 and distinct <= max(20, len(values) // 1000)
    return "id" if few and not words & set(_QUANTITIES) else "number"


def _counts_up(values: pl.Series) -> bool:
    """Whether ``values`` (an even sample of rows) are the numbers of the rows, from 0 or 1 on."""
    steps = values.diff().drop_nulls().unique()
    return len(values) > 2 and values[0] in (0, 1) and steps.len() == 1 and steps[0] > 0


def _text_role(values: pl.Series, distinct: int, roles: Roles) -> Role:
    some = values.head(1000)
    given = some.filter(~some.str.strip_chars().str.to_lowercase().is_in(MISSING))
    numbers = given.to_frame().select(number(pl.col(given.name), pl.String()).is_not_null().mean()).item()
    if len(given) and numbers >= _SURE_SHARE and not _words(values.name) & {*_CATEGORIES, *_USERS, *_ITEMS}:
        return "number"
    dated = given.filter(given.str.contains(r"^\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}"))
    times = dated.to_frame().select(epoch(pl.col(dated.name), pl.String())).to_series().count()
    if len(given) and times >= _SURE_SHARE * len(given):
        return "time"
    if some.str.contains(r"^\s*\[.*\]\s*$").all():
        return "bag"
    for delimiter in (*_SURE_DELIMITERS, *_LIKELY_DELIMITERS):
        parts = values.str.split(delimiter)
        several = (parts.list.len() > 1).mean()
        elements = parts.explode()
        assert isinstance(several, float)
        if several > 0.1 and (delimiter in _SURE_DELIMITERS or elements.n_unique() * 2 < distinct):
            roles.delimiters[values.name] = delimiter
            return "bag"
    words = some.str.count_matches(r"\S+").mean()
    assert isinstance(words, float)
    return "text" if words > 4 and distinct * 2 > len(values) else "id"


def _find_label(sample: pl.DataFrame, roles: Roles) -> str | None:
    """The column that is the label by its name and by its values; else the only one of zeros and ones."""
    binary = [name for name in sample.columns if _is_binary(sample[name])]
    ratings = [
        name
        for name, role in roles.of.items()
        if role in ("id", "number") and sample[name].dtype.is_numeric() and 2 < sample[name].n_unique() <= 21
    ]
    by_name = {name.lower(): name for name in (*ratings, *binary)}
    for hint in _LABELS:
        if hint in by_name:
            return by_name[hint]
    return binary[0] if len(binary) == 1 else None


def named_like_outcome(values: pl.Series) -> bool:
    """Whether a column of two values is named like a label: ``target``, ``is_click``, ``purchased``."""
    words = _words(values.name) - {"is", "has", "was"}
    return len(words) == 1 and words <= set(_LABELS) and _is_binary(values)


def _threshold(values: pl.Series) -> float | None:
    """From where on ratings count as positive: four fifths of the scale."""
    if _is_binary(values) or not values.dtype.is_numeric():
        return None
    high = float(values.max())  # type: ignore[arg-type]
    return round(high * 0.8, 1)


def _affirmative(values: pl.Series) -> tuple[str, ...]:
    """The value that says yes, of a column of text that says yes or no."""
    if values.dtype != pl.String:
        return ()
    found = {value.lower(): value for value in values.drop_nulls().unique().head(3)}
    return next(((found[yes],) for yes, no in _NO_OF_YES.items() if found.keys() == {yes, no}), ())


def _is_binary(values: pl.Series) -> bool:
    if values.dtype == pl.Boolean or _affirmative(values):
        return True
    return values.dtype.is_numeric() and set(values.drop_nulls().unique().to_list()) == {0, 1}


def _named(names: Sequence[str], hints: Sequence[str], *, exact: bool = False) -> str | None:
    """The shortest name with the first hint among its words; ``exact``: and no other but ``id`` or the like."""
    ordered = sorted(names, key=len)
    return next(
        (
            name
            for hint in hints
            for name in ordered
            if hint in _words(name) and not (exact and _words(name) - {hint} - _OF_KEYS)
        ),
        None,
    )


def _words(name: str) -> set[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return set(re.split(r"[^a-z]+", spaced.lower())) - {""}


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
