"""Temporary files that are removed when the process ends: cleaned copies of text."""

import itertools
import tempfile
from functools import cache
from pathlib import Path

_numbers = itertools.count()


def scratch_file(suffix: str) -> Path:
    """The path of a new file in a folder that is removed when the process ends (below ``TMPDIR``)."""
    return Path(_folder().name) / f"{next(_numbers)}{suffix}"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="recsys-")
