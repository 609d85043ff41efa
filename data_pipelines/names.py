"""Names of the columns that the product adds to rows, all in one place so that none can hide one of a log's own.

They start with a colon: no feature can be called so, and a log with such a column is refused.
"""

from collections.abc import Collection

ROW = ":row"
"""Position of a row in its log, from 0."""
TIME = ":time"
"""Time of a row in microseconds since 1970 (UTC)."""
REASON = ":reason"
"""Why a row is refused; null where it is not."""
UNLABELLED = "no label"
"""The reason of a row that has no label for any task: left out, but not at fault."""
SPLIT = ":split"
"""Position of a row's split in ``SPLITS``; null for rows of a gap."""
POSITIVE = "positive"
"""With ``sampling``: 1 in the rows of the log, 0 in the negatives drawn for them."""
DRAWN = ":drawn"
"""With ``sampling``: whether a row is a drawn negative, which never happened and is no event of anyone's past."""
LOG_Q = ":log_q"
"""With ``sampling``: the log of how many times as likely as by a uniform draw a row's item is drawn as a negative."""
LIST = ":list"
"""The key of the list that a row is in (UInt64), 0 for none: what ``group`` says, or a positive and its negatives."""
SOURCE = ":source"
"""Suffix of the column that holds what a ``relative`` feature compares."""
START, LENGTH = ":start", ":length"
"""Suffixes of a history's columns: the slice of its entity's events that a row sees."""
SEPARATOR = "\x1f"
"""Stands between the parts of a combined value (ASCII unit separator)."""


OWN = frozenset({ROW, TIME, REASON, SPLIT, DRAWN, LOG_Q, LIST})
"""Columns that stand beside those of a log while it is read."""


def key_name(key: str, taken: Collection[str]) -> str:
    """What the column of a key is called in a table that has the columns ``taken`` too: ``key:click`` for ``click``."""
    return f"key:{key}" if key in taken else key
