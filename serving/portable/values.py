"""Values of raw rows in the forms that features read, as :mod:`data_pipelines.features.values` gives them."""

import math
import re
from typing import Any

import numpy as np

from serving.portable.files import PortableError

_BLANKS = " \t\r\n\u00a0"
_TRUTH = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_TRUTH_NUMBERS = {"true": 1.0, "false": 0.0}
_WHOLE = re.compile(r"(?:(-?[1-9][0-9]*)|-?(0))\.0+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def canonical(value: Any) -> str | None:
    """The one text form of a value: ``7``, ``7.0`` and ``" 7 "`` are the same; ``None`` where there is no value.

    Raises:
        PortableError: It is a list or an object.
    """
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _float_text(float(value))
    if not isinstance(value, str):
        raise PortableError(f"{type(value).__name__} is not a single value")
    text = value.strip(_BLANKS)
    whole = _WHOLE.fullmatch(text)
    text = (whole[1] or whole[2]) if whole else text
    return _TRUTH.get(text, text) or None


def _float_text(value: float) -> str | None:
    if math.isnan(value):
        return None
    if math.isfinite(value) and value == round(value) and abs(value) < 2**53:
        return str(int(value))
    if 1e-5 <= abs(value) < 1e-4:
        return np.format_float_positional(value, trim="-")
    return repr(value).replace("e-0", "e-")


def bag_values(value: Any, delimiter: str | None) -> list[str | None]:
    """The canonical values of a bag: of a list, or of text that is cut at ``delimiter`` or read as a list."""
    if value is None:
        return []
    if isinstance(value, str):
        inside = value if delimiter else value.strip().strip("[]()")
        parts = inside.split(delimiter) if delimiter else [part.strip(" \t\r\n'\"") for part in inside.split(",")]
        return [text for text in map(canonical, parts) if text is not None]
    if isinstance(value, list | tuple | np.ndarray):
        return [canonical(entry) for entry in value]
    raise PortableError(f"{value!r} is neither a list nor text")


def number(value: Any) -> float:
    """A finite number; NaN where there is none. Truth values, as text too, are 1 and 0."""
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if _NUMBER.fullmatch(text) else _TRUTH_NUMBERS.get(canonical(text) or "", math.nan)
    elif value is not None and not isinstance(value, int | float | np.number | np.bool_):
        raise PortableError(f"{value!r} is not a number")
    found = math.nan if value is None else float(value)
    return found if math.isfinite(found) else math.nan
