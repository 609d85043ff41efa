"""File names that come from files: manifests, journals, listings of stores, logs of Delta tables.

Such a name may be hostile, so it is checked before anything is read or written under it.
"""

import os
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from data_pipelines.errors import UserError

_LONGEST_PART = 255
_LONGEST = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")


def checked_name(name: str) -> str:
    """``name`` itself, if it stays below any folder that it is joined to.

    It is relative, its parts are separated by ``/``, and none of them is empty, ``.`` or ``..``.

    Raises:
        ValueError: The name is absolute, leads upwards, has a backslash, a drive or a control character, is not valid
            UTF-8, or is longer than file systems take (255 bytes per part, 1,024 in all).

    Example:
        >>> checked_name("splits/train/part-00000.arrow")
        'splits/train/part-00000.arrow'
    """
    shown = ascii(name if len(name) <= 80 else f"{name[:77]}...")
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        raise ValueError(f"the file name {shown} is not valid UTF-8") from None
    if name.startswith("/") or _DRIVE.match(name):
        raise ValueError(f"the file name {shown} is absolute")
    if any(part in (b"", b".", b"..") for part in parts):
        raise ValueError(f"the file name {shown} has an empty part, '.' or '..'")
    if "\\" in name or _CONTROL.search(name):
        raise ValueError(f"the file name {shown} has a backslash or a control character")
    if max(map(len, parts)) > _LONGEST_PART or len(name.encode()) > _LONGEST:
        raise ValueError(f"the file name {shown} is longer than {_LONGEST_PART} bytes per part or {_LONGEST} in all")
    return name


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a :func:`checked_name` of a single part: a file directly in a folder."""
    try:
        return "/" not in checked_name(name)
    except ValueError:
        return False


FileName = Annotated[str, AfterValidator(checked_name)]
"""The type of file names in pydantic models of files."""


def below(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``, whether or not a file is there.

    Raises:
        UserError: ``name`` is not a :func:`checked_name`, a link leads out of ``folder``, or what is there is neither
            a regular file nor a folder.
    """
    try:
        path = folder / checked_name(name)
    except ValueError as error:
        raise UserError(f"{folder}: {error}: only files below the folder are read and written.") from None
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{path} is a link that leads out of {folder}: put a copy of the file in its place.")
    try:
        mode = os.stat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read (a broken link: {error.strerror}): put the file in its place."
        ) from None
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is not a regular file: put a copy of the file in its place.")
    return path
