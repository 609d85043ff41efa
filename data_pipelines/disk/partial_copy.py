"""A copy of a directory at an object store whose files are fetched when they are first read, instead of all at once.

The processes of one machine share it: a lock per file keeps two of them from fetching the same file.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from data_pipelines.disk.file_names import below
from data_pipelines.disk.object_store import RemoteFolder, cache_folder, complete_manifest
from data_pipelines.disk.storage import MANIFEST, checksum, write_file
from data_pipelines.errors import UserError

_FETCHING = ".fetching"


class PartialCopy:
    """What has been fetched so far of the directory at ``address``, in the user's cache folder.

    Every file is compared with the checksum in the manifest when it arrives.

    Args:
        limit: The most bytes of files read through :meth:`held` that this process keeps on the disk: the ones that it
            has not read for longest are removed. All of them stay if absent.

    Attributes:
        folder: Where the files are.
        manifest: Of the whole directory.
        fetched: Bytes that this process has fetched.

    Raises:
        UserError: There is no complete directory at the address.
    """

    def __init__(self, address: str, *, limit: int | None = None) -> None:
        self.address, self.manifest, self.fetched = address, complete_manifest(address), 0
        self.folder = cache_folder(address) / f"{self.manifest.fingerprint}.partial"
        self.folder.mkdir(exist_ok=True)
        write_file(self.folder / MANIFEST, self.manifest.model_dump_json(indent=1))
        self._limit, self._lock = limit, Lock()
        self._removable: dict[str, None] = {}  # least recently read first
        self._kept: set[str] = set()

    def fetch(self, names: Iterable[str]) -> None:
        """Make sure that some files are there, and keep them, whatever the limit.

        Raises:
            UserError: A file cannot be fetched, or what arrives is damaged.
        """
        for name in names:
            with self.held(name):
                self._kept.add(name)

    @contextmanager
    def held(self, name: str) -> Iterator[Path]:
        """The path of a file, which is fetched if it is not there, and not removed while the block runs.

        A file that the block has mapped can be read afterwards, even if it has been removed.

        Raises:
            UserError: The file cannot be fetched, or what arrives is damaged.
        """
        path = below(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(path, wait=True):
            if not (path.is_file() and path.stat().st_size == self.manifest.files[name].bytes):
                self._fetch(name, path)
            yield path
        with self._lock:
            self._removable.pop(name, None)
            self._removable[name] = None
            self._remove_oldest(name)

    def _fetch(self, name: str, path: Path) -> None:
        entry = self.manifest.files[name]
        arrived = RemoteFolder(self.address).fetch(name, self.folder / _FETCHING, limit=entry.bytes)
        if checksum(arrived) != entry:
            arrived.unlink()
            raise UserError(
                f"{self.address}/{name} is damaged (its checksum does not match): send the directory again."
            )
        os.replace(arrived, path)
        with self._lock:
            self.fetched += entry.bytes

    def _remove_oldest(self, newest: str) -> None:
        """Remove files, the one that was not read for longest first, until the rest is within the limit."""
        removable = [name for name in self._removable if name not in self._kept]
        held = sum(self.manifest.files[name].bytes for name in removable)
        for name in removable:
            if self._limit is None or held <= self._limit or name == newest:
                return
            with _lock_of(below(self.folder, name), wait=False) as locked:
                if locked:
                    below(self.folder, name).unlink(missing_ok=True)
                    del self._removable[name]
                    held -= self.manifest.files[name].bytes


@contextmanager
def _lock_of(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file among the processes of this machine; yield whether it is held."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
