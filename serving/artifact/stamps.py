"""What the file system says of files that are mapped, so that it is noticed when they change below the process."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UnavailableError


class Stamp(NamedTuple):
    """What the file system says of a file: which one it is, its size in bytes, and when it was last written."""

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

    What is mapped is then no longer what was checked, and reading beyond a new end would kill the process. Files that
    were removed, or replaced as a whole, stay mapped as they were.

    Raises:
        UnavailableError: One was written in place.
    """
    for name, now in stamps_of(folder, stamps).items():
        then = stamps[name]
        if then is not None and now is not None and now[:2] == then[:2] and now != then:
            raise UnavailableError(
                f"{folder / name} was written in place after it was opened: restore the artifact, and register it "
                "again or restart."
            )
