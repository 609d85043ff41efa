"""Names of the columns that the product adds to rows, in one place, so that none can hide a column of a log.

They start with a colon: no feature can have such a name, and a log with such a column is refused.
"""

from collections.abc import Collection

ROW = ":row"
"""Position of a row in its log, from 0."""
TIME = ":time"
"""Time of a row in microseconds since 1970 (UTC)."""
REASON = ":reason"
"""Why a row is refused; null where it is not."""
UNLABELLED = "no label"
"""The reason of a row that has no label for any task: it is left out, but it is not invalid."""
SPLIT = ":split"
"""Position of a row's split in ``SPLITS``; null for rows of a gap."""
POSITIVE = "positive"
"""With ``sampling``: 1 in the rows of the log, 0 in the negatives drawn for them."""
DRAWN = ":drawn"
"""With ``sampling``: whether a row is a drawn negative. It never happened, so it is not an event of any history."""
LOG_Q = ":log_q"
"""With ``sampling``: log of how many times likelier than in a uniform draw a row's item is drawn as a negative."""
LIST = ":list"
"""The key of the list that a row is in (UInt64), 0 for none: what ``group`` says, or a positive and its negatives."""
SOURCE = ":source"
"""Suffix of the column that holds what a ``relative`` feature compares."""
START, LENGTH = ":start", ":length"
"""Suffixes of a history's columns: the slice of its entity's events that a row sees."""
SEPARATOR = "\x1f"
"""Stands between the parts of a combined value (ASCII unit separator)."""


OWN = frozenset({ROW, TIME, REASON, SPLIT, DRAWN, LOG_Q, LIST})
"""Columns that are added to those of a log while it is read."""


def key_name(key: str, taken: Collection[str]) -> str:
    """The name of a key column in a table that also has the columns ``taken``: ``key:click`` for ``click``."""
    return f"key:{key}" if key in taken else key
