"""Files of one JSON object per line that a kill cannot damage, and the lock of a folder that one process works in.

A line counts only with its end: one that a kill cut short is no entry.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError

_Entry = TypeVar("_Entry", bound=BaseModel)


def read_lines(path: Path) -> list[bytes]:
    """The complete lines of the file at ``path``, without their ends; none if there is no file."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def parse_lines(lines: Iterable[bytes], kind: type[_Entry]) -> tuple[list[_Entry], int]:
    """The entries that ``lines`` hold, and how many lines hold none."""
    entries, invalid = [], 0
    for line in lines:
        try:
            entries.append(kind.model_validate_json(line))
        except ValidationError:
            invalid += 1
    return entries, invalid


def append_entry(path: Path, entry: BaseModel) -> None:
    """Add a line to the file at ``path`` and flush it to the disk.

    The file must end with a complete line: see :func:`write_entries`.
    """
    with path.open("ab") as file:
        file.write(entry.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_entries(path: Path, entries: Iterable[BaseModel], *, head: str | None = None) -> None:
    """Rewrite the file at ``path``: afterwards it holds all entries, or what it held before.

    Args:
        head: A first line that is no entry.
    """
    lines = ([] if head is None else [head]) + [entry.model_dump_json() for entry in entries]
    write_file(path, "".join(f"{line}\n" for line in lines))


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Let only one process work in ``folder``; the lock ends with the process, however that ends.

    Args:
        folder: An existing folder, which gets the file ``.lock``.
        busy: What to say if another process holds the lock.

    Raises:
        UserError: Another process holds it, or the folder cannot be written.
    """
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose a folder you may write to.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        yield
