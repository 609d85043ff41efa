"""Which files a path, a folder, a glob or an object-store address means."""

import re
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

from data_pipelines.errors import UserError

_PARTITION = re.compile(r"[^=]+=.*")
_LEFTOVER = re.compile(r"#.*#|.*~(\.[^.]+)?|.*\.(bak|crc|crdownload|inprogress|orig|part|swp|tmp)", re.IGNORECASE)


def find_files(location: str) -> list[str]:
    """The files at a path, in a folder or of a glob, sorted by name; an object-store address as it is.

    A name that exists is taken literally, whatever marks it has (``clicks[1].csv``). In folders, and among what a glob
    matches, files that no log consists of are skipped: those whose name, or whose folder's name, starts with ``.`` or
    ``_`` (``.ipynb_checkpoints``, ``_temporary``, ``_SUCCESS``; not a partition such as ``_day=1``), and what editors
    and copies leave behind (``log.csv~``, ``log~.csv``, ``log.csv.tmp``).

    Raises:
        UserError: Nothing is there, or only files that are skipped.
    """
    if "://" in location:
        return [location]
    path = Path(location)
    if path.is_file():
        return [location]
    if path.is_dir():
        root, matched = path, [found.relative_to(path) for found in path.rglob("*") if found.is_file()]
    else:
        root, matched = _matched(path)
    found = of_folder((str(root / name) for name in matched), root)
    if found:
        return found
    if matched:
        raise UserError(
            f"{location} holds only hidden or temporary files, such as {root / min(matched)}: give the path of the log."
        )
    raise UserError(f"{location} is not there: give the path of a file, a folder or a glob that holds the log.")


def of_folder(files: Iterable[str], folder: Path) -> list[str]:
    """Which of the ``files`` below ``folder`` are a log's, sorted: see :func:`find_files`."""
    return sorted(file for file in files if not _is_skipped(Path(file).relative_to(folder)))


def _is_skipped(name: Path) -> bool:
    hidden = any(part.startswith((".", "_")) and not _PARTITION.fullmatch(part) for part in name.parts)
    return hidden or _LEFTOVER.fullmatch(name.name) is not None


def _matched(pattern: Path) -> tuple[Path, list[Path]]:
    """The deepest folder of ``pattern`` that exists, and the files below it that match the rest."""
    root, rest = Path(pattern.anchor), list(pattern.parts[bool(pattern.anchor) :])
    while rest and (root / rest[0]).is_dir():
        root /= rest.pop(0)
    below = str(Path(*rest))
    if not has_magic(below):
        return root, []
    return root, [Path(name) for name in glob(below, root_dir=root, recursive=True) if (root / name).is_file()]
