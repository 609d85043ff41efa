"""Exchange two paths in one step, so that a directory can be replaced without a moment in which it is missing."""

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths of one file system atomically (Linux ``renameat2``); false where that is not possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def replace_directory(new: Path, old: Path) -> None:
    """Put the directory ``new`` at ``old``, and remove what was there.

    Where paths can be exchanged, there is a complete directory at ``old`` at any time. Elsewhere a process that is
    killed between two renames leaves it as ``.<name>.old.*/old`` beside its place.
    """
    if exchanged(new, old):
        _remove(new)
        return
    retired = Path(tempfile.mkdtemp(dir=old.parent, prefix=f".{old.name}.old."))
    os.replace(old, retired / "old")
    os.replace(new, old)
    _remove(retired)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)
