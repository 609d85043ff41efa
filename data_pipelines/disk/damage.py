"""Errors of damaged files: whatever a library raises becomes one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from data_pipelines.errors import UserError

# The engine panics on some damaged files, which is not an ordinary exception.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    OSError,
    LZMAError,
    SafetensorError,
    pa.ArrowException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
_Content = TypeVar("_Content", bound=BaseModel)


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Turn any library's error on a damaged file into one sentence that names ``path``.

    Raises:
        UserError: The block raised an error that damaged content can cause.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing: make its directory again or restore it.") from None
    except _DAMAGE as error:
        reason = reason_of(error) if isinstance(error, ValidationError) else _first_line(error)
        raise UserError(f"{path} is damaged ({reason}): make its directory again or restore it.") from error


def read_json(path: Path, kind: type[_Content]) -> _Content:
    """Read the JSON file at ``path`` as a pydantic model.

    Raises:
        UserError: It is missing or damaged.
    """
    with intact(path):
        return kind.model_validate_json(path.read_bytes())


def _first_line(error: BaseException) -> str:
    kind, text = type(error).__name__, str(error).strip().partition("\n")[0]
    return f"{kind}: {text[:200]}" if text else kind


def reason_of(error: ValidationError) -> str:
    """The first fault, and its place."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    return message if "file name" in message or not place else f"{place[:80]}: {message}"
