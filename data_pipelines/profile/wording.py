"""Formatting of values and shares of a log in messages."""

import json
import re
import shlex
from collections.abc import Iterable

_UNMISTAKABLE = re.compile(r"[\w.:/+@#%&*=<>!?-]+(?: [\w.:/+@#%&*=<>!?-]+)*")
_SHOWN = 10
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def shown(value: str, longest: int = 40) -> str:
    """A value for a message, in double quotes if it holds quotes, commas or outer blanks, and cut if it is long.

    Example:
        >>> print(shown("Berlin"), shown("Paris, France"), shown("' No'"))
        Berlin "Paris, France" "' No'"
    """
    cut = value if len(value) <= longest else value[: longest - 1] + "…"
    return cut if _UNMISTAKABLE.fullmatch(cut.removesuffix("…")) else json.dumps(cut, ensure_ascii=False)


def listed(values: Iterable[str], most: int = _SHOWN) -> str:
    """The first ``most`` values, quoted for a shell and separated by commas, and how many more there are."""
    chosen = list(values)
    more = f" and {len(chosen) - most:,} more" if len(chosen) > most else ""
    return ", ".join(map(shlex.quote, chosen[:most])) + more


def percent(share: float) -> str:
    """A share as a percentage that says 0% and 100% only where that is exact.

    Example:
        >>> percent(0.0428), percent(0.99996), percent(0.00001), percent(1.0)
        ('4.3%', '>99.9%', '<0.1%', '100%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.0005:
        return "<0.1%"
    return ">99.9%" if share >= 0.9995 else f"{share:.1%}"


def scalar(text: str) -> str:
    """``text`` as a YAML scalar."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS else json.dumps(text, ensure_ascii=False)


def line(text: str, comment: str) -> str:
    """A line of YAML with its comment."""
    return f"{text:<58}  # {comment}" if comment else text


def feature_name(column: str) -> str:
    """A name for the feature of a column: words and ``-`` only, because a name may not hold ``.`` or ``:``."""
    return re.sub(r"[^\w-]+", "_", column).strip("_") or "unnamed"
