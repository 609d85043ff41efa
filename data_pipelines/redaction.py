"""Removes secrets from files and messages: credentials in addresses, and the values of ``${NAME}``."""

import re
from collections.abc import Mapping
from typing import Any

REFERENCE = re.compile(r"\$\{(\w+)\}")
"""``${NAME}`` in a config: the value of an environment variable."""

_HIDDEN = "***"
_PASSWORD = re.compile(r"((?<![\w+.-])[A-Za-z][\w+.-]*://[^\s/@:]*):(?!\d+(?:[/?#\s]|$))((?:[^\s/]*|[^\s@]*)(?=@))@")
_TOKEN = re.compile(r"(https?://)([^\s/@:]+)@")
_PARAMETER = re.compile(
    r"([?&;][\w.%-]*(?:token|sig|secret|passw|pwd|key|credential|auth|session)[\w.%-]*=)([^&;#\s'\"]+)", re.IGNORECASE
)
_LONG = 8
_expanded: dict[str, str] = {}


def redact(text: str) -> str:
    """``text`` with ``***`` instead of every credential in an address: passwords, tokens and signed parameters.

    A reference (``${NAME}``) stays: it says where the secret is, not what it is.

    Example:
        >>> redact("http://me:secret@host/log.csv?token=abc&part=1")
        'http://***@host/log.csv?token=***&part=1'
    """
    text = _PASSWORD.sub(lambda found: found[0] if _is_reference(found[2]) else f"{_scheme(found[1])}{_HIDDEN}@", text)
    text = _TOKEN.sub(lambda found: found[0] if _is_reference(found[2]) else f"{found[1]}{_HIDDEN}@", text)
    return _PARAMETER.sub(lambda found: found[0] if _is_reference(found[2]) else f"{found[1]}{_HIDDEN}", text)


def redacted(value: Any) -> Any:
    """A copy of ``value`` (mappings, lists, text) with all of its text redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(entry) for entry in value]
    return value


def remember(name: str, value: str) -> None:
    """Record that ``${NAME}`` was replaced by ``value`` in this process, so that :func:`conceal` can undo it."""
    _expanded[name] = value


def conceal(text: str) -> str:
    """``text`` for an error message or a log line: redacted, and with ``${NAME}`` instead of the variable's value.

    Libraries name paths as they got them, with the values of variables in them. Short values are replaced only if they
    stand alone, because they may occur inside any word.
    """
    for name, value in sorted(_expanded.items(), key=lambda entry: -len(entry[1])):
        if len(value) >= _LONG:
            text = text.replace(value, f"${{{name}}}")
        elif value:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", f"${{{name}}}", text)
    return redact(text)


def _is_reference(credential: str) -> bool:
    return credential == _HIDDEN or REFERENCE.fullmatch(credential) is not None


def _scheme(start: str) -> str:
    return start[: start.index("://") + 3]
