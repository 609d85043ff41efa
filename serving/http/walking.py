"""Bounded walks over folders that a client chose, which do not follow links to folders."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from fnmatch import translate
from pathlib import Path

from data_pipelines.errors import UserError

ENTRIES = 200_000
SECONDS = 10.0


class Walk:
    """One walk, which ends with an error after so many entries or seconds.

    Args:
        entries: The most entries of all folders together.
        seconds: The most seconds since the start of the walk.
    """

    def __init__(self, *, entries: int = ENTRIES, seconds: float = SECONDS) -> None:
        self._most, self._seconds = entries, seconds
        self._left, self._end = entries, time.monotonic() + seconds

    def glob(self, folder: Path, pattern: Sequence[str]) -> Iterator[str]:
        """Files and links below ``folder`` that match a pattern, given part by part, as in :func:`glob.glob`.

        ``**`` stands for any number of folders. Links are never followed; one that matches the whole pattern is
        returned as it is. A path may be returned twice.

        Raises:
            UserError: The walk is too long.
            OSError: ``folder`` cannot be read.
        """
        waiting = [(str(folder), tuple(pattern))]
        while waiting:
            at, (first, *rest) = waiting.pop()
            if first == "**":
                waiting.append((at, tuple(rest) or ("*",)))
            matches = re.compile(translate(first)).match
            for entry in self._entries(at):
                hidden, folder_too = entry.name.startswith("."), entry.is_dir(follow_symlinks=False)
                if first == "**":
                    if folder_too and not hidden:
                        waiting.append((entry.path, (first, *rest)))
                elif matches(entry.name) and (not hidden or first.startswith(".")):
                    if rest and folder_too:
                        waiting.append((entry.path, tuple(rest)))
                    elif not rest and not folder_too:
                        yield entry.path

    def below(self, folder: Path) -> Iterator[str]:
        """All files and links below ``folder``, hidden ones too.

        Raises:
            UserError: The walk is too long.
            OSError: ``folder`` cannot be read.
        """
        waiting = [str(folder)]
        while waiting:
            for entry in self._entries(waiting.pop()):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry.path

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0 or time.monotonic() > self._end:
                    raise UserError(
                        f"the search exceeds {self._most:,} files or {self._seconds:g} seconds: name a folder that "
                        "holds fewer other files."
                    )
                yield entry
