"""Stamps of memory-mapped files, from which a process notices that they have changed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UnavailableError


class Stamp(NamedTuple):
    """The identity of a file, its size in bytes, and when it was last written."""

    device: int
    inode: int
    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp | None":
        """The stamp of the file at ``path``; ``None`` if there is none."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def stamps_of(folder: Path, names: Iterable[str]) -> dict[str, Stamp | None]:
    """The stamps of the files of these names below ``folder``, as they are now."""
    return {name: Stamp.of(folder / name) for name in names}


def check_not_written(folder: Path, stamps: Mapping[str, Stamp | None]) -> None:
    """Refuse files that were written in place since their ``stamps`` were taken.

    The mapped bytes are then not those that were checked, and reading beyond a new end would kill the process. Files
    that were removed, or replaced as a whole, stay mapped unchanged.

    Raises:
        UnavailableError: A file was written in place.
    """
    for name, now in stamps_of(folder, stamps).items():
        then = stamps[name]
        if then is not None and now is not None and now[:2] == then[:2] and now != then:
            raise UnavailableError(
                f"{folder / name} was written in place after it was opened: restore the artifact, and register it "
                "again or restart."
            )
