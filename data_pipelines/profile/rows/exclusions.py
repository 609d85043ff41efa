"""Rows that may not be what a model should learn from: returns, cancellations, bots, tests.

They are guessed from names and values, and only proposed: a condition for ``data.where`` that leaves them out.
"""

import re
from collections.abc import Iterator

import polars as pl

from data_pipelines.config.base import Config
from data_pipelines.errors import UserError
from data_pipelines.features.conditions import condition, condition_columns
from data_pipelines.features.values import number, text
from data_pipelines.profile import words
from data_pipelines.profile.labels import value_of_no
from data_pipelines.profile.roles import Roles
from data_pipelines.profile.wording import shown

_AMOUNTS = frozenset(
    (
        *("quantity", "qty", "amount", "count", "units", "total", "price", "paid", "revenue", "sales", "spent"),
        *("menge", "anzahl", "preis", "betrag", "umsatz", "cantidad", "importe", "quantite", "montant"),
    )
)
"""Words that say that a number below 0 takes back an earlier one."""
_UNDONE = frozenset(
    (
        *("cancelled", "canceled", "cancellation", "cancel", "refunded", "refund", "returned", "return", "voided"),
        *("void", "reversed", "chargeback", "storniert", "storno", "retourniert", "annulé", "remboursé", "cancelado"),
    )
)
"""Values that say that a row was undone."""
_NOBODY = frozenset(("bot", "robot", "crawler", "spider", "internal", "test", "fraud", "fraudulent", "spam"))
"""Words of a column of two values that say that a row is of nobody a model should learn from."""
_MOST_VALUES = 50
_MOST = 0.5
"""Share of the rows from which they are the log, and no exception in it."""


class Exclusion(Config):
    """Rows that a condition would leave out.

    Attributes:
        condition: It holds for the rows to keep; SQL, as for ``data.where``.
        share: Share of the rows for which it does not hold.
        reason: What these rows seem to be, as a sentence follows "... of the rows".
    """

    condition: str
    share: float
    reason: str


def find_exclusions(frame: pl.LazyFrame, sample: pl.DataFrame, roles: Roles) -> tuple[Exclusion, ...]:
    """What may be left out of the log ``frame``, with shares of all rows; ``sample`` is a part of it."""
    found, schema = list[Exclusion](), frame.collect_schema()
    for keep, reason in _candidates(sample, roles):
        left_out = 1 - condition("the log", keep, schema).fill_null(False).mean()
        share = frame.select(left_out).collect(engine="streaming").item()
        if 0 < share < _MOST:
            found.append(Exclusion(condition=keep, share=share, reason=reason))
    return tuple(found)


def _candidates(sample: pl.DataFrame, roles: Roles) -> Iterator[tuple[str, str]]:
    """Conditions that rows to keep meet, and what the other rows seem to be."""
    for name in roles.columns("id", "number"):
        if '"' in name:
            continue
        column, named = _quoted(name), {*words.words(name)}
        if roles.of[name] == "number":
            kept = _of_amounts(sample, name, column) if named & _AMOUNTS else None
        else:
            kept = _of_codes(sample, name, column, nobody=bool(named & _NOBODY))
        if kept is not None:
            keep, reason, missing = kept
            yield f"{keep} OR {column} IS NULL" if missing else keep, reason


def _of_amounts(sample: pl.DataFrame, name: str, column: str) -> tuple[str, str, bool] | None:
    """A condition on a column of amounts, what the other rows seem to be, and whether there are nulls."""
    amounts = sample.select(number(pl.col(name), sample.schema[name])).to_series()
    if not (amounts < 0).any():
        return None
    return f"{column} >= 0", f"have a {shown(name)} below 0, as returns and refunds do", amounts.has_nulls()


def _of_codes(sample: pl.DataFrame, name: str, column: str, *, nobody: bool) -> tuple[str, str, bool] | None:
    """The same of a column of few codes; ``nobody``: its name says whether a row is of a bot or the like."""
    texts = sample.select(text(pl.col(name), sample.schema[name])).to_series()
    codes = texts.drop_nulls().unique().sort().to_list()
    if nobody and (no := value_of_no(codes)) is not None:
        literal = no if no in ("0", "false") else f"'{no}'"
        return f"{column} = {literal}", f"are marked by {shown(name)}", texts.has_nulls()
    undone = [code for code in codes if code.lower() in _UNDONE] if len(codes) <= _MOST_VALUES else []
    if not undone or len(undone) == len(codes):
        return None
    listed = ", ".join("'" + code.replace("'", "''") + "'" for code in undone)
    return f"{column} NOT IN ({listed})", f"have the {shown(name)} {' or '.join(undone)}", texts.has_nulls()


def _quoted(name: str) -> str:
    """A column in SQL: in double quotes where its name is not plain, or a word of SQL."""
    try:
        if re.fullmatch(r"[A-Za-z_]\w*", name) and condition_columns("a name", f"{name} > 0") == [name]:
            return name
    except UserError:
        pass
    return f'"{name}"'
