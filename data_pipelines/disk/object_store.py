"""Directories at object stores: sent with the manifest last, and fetched as a whole, because files are memory-mapped.

A directory exists when its manifest does. An upload that was interrupted leaves files, but nothing that can be opened.
Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and the like).
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.disk.file_names import below, checked_name
from data_pipelines.disk.storage import (
    LARGEST_MANIFEST,
    MANIFEST,
    Manifest,
    complete,
    fingerprint,
    open_directory,
    sync,
)
from data_pipelines.errors import UserError

if TYPE_CHECKING:
    from fsspec.callbacks import Callback


class _MissingError(UserError):
    """A file is not at the store."""


def is_address(location: str | Path) -> bool:
    """Whether ``location`` is an object-store address such as ``s3://bucket/name`` rather than a path."""
    return "://" in str(location)


@dataclass(frozen=True)
class RemoteFolder:
    """The files below an address, by their names in it.

    Every method raises :class:`UserError` where the store refuses or cannot be reached.
    """

    address: str

    def names(self) -> list[str]:
        with _store(self.address) as (store, root):
            found = store.find(root) if store.exists(root) else []
        try:
            return [checked_name(name.removeprefix(f"{root}/")) for name in found]
        except ValueError as error:
            raise UserError(f"{self.address}: {error}: remove it from the store.") from None

    def put(self, file: Path, name: str) -> None:
        with _store(self.address) as (store, root):
            store.put_file(str(file), f"{root}/{name}")

    def fetch(self, name: str, folder: Path, *, limit: int | None = None) -> Path:
        """Copy a file to its name below ``folder``; return its path there.

        Args:
            limit: Bytes that it may have at most; any number if absent.

        Raises:
            UserError: The name leads out of ``folder``, or there are more bytes.
        """
        path = below(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _store(self.address) as (store, root):
            _check_local(store, root, name, limit)
            store.get_file(f"{root}/{name}", str(path), callback=_limited(f"{self.address}/{name}", limit))
        return path

    def write(self, name: str, content: str) -> None:
        with _store(self.address) as (store, root):
            store.pipe_file(f"{root}/{name}", content.encode())

    def manifest(self) -> Manifest | None:
        """The manifest of the directory; ``None`` if there is no complete directory."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                return Manifest.read(self.fetch(MANIFEST, Path(scratch), limit=LARGEST_MANIFEST))
            except _MissingError:
                return None

    def remove(self) -> None:
        """Remove everything, the manifest first: the rest of an interrupted removal cannot be opened."""
        with _store(self.address) as (store, root):
            if store.exists(f"{root}/{MANIFEST}"):
                store.rm_file(f"{root}/{MANIFEST}")
            if store.exists(root):
                store.rm(root, recursive=True)


def push(folder: Path, address: str, *, replace: bool = False) -> None:
    """Send the directory ``folder`` to ``address``.

    Raises:
        UserError: A directory is there already (unless ``replace``), ``folder`` is not complete, a file of it is
            damaged, or the store refuses.
    """
    manifest = complete(folder)
    if not replace:
        _refuse_existing(address)
    remote = RemoteFolder(address)
    remote.remove()
    for name in [*sorted(manifest.files), MANIFEST]:
        remote.put(folder / name, name)


def pull(address: str, folder: Path) -> None:
    """Fetch the directory at ``address`` to ``folder``, which is then complete (checksums are compared) or absent.

    Raises:
        UserError: There is no complete directory, its manifest names files outside it, it is larger than the disk has
            space, or what arrives is damaged.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        remote, manifest = RemoteFolder(address), complete_manifest(address)
        _check_space(address, manifest, beside)
        for name, entry in manifest.files.items():
            remote.fetch(name, beside, limit=entry.bytes)
        remote.fetch(MANIFEST, beside, limit=LARGEST_MANIFEST)
        open_directory(beside, manifest.kind)
        beside.chmod(0o755)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(folder.parent)


def fetched(location: str | Path) -> Path:
    """``location`` itself if it is a path; else a local copy of what is at the address, fetched once per content.

    Copies are in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``) below ``recsys/``.

    Raises:
        UserError: There is no complete directory at the address, or what arrives is damaged.
    """
    if not is_address(location):
        return Path(location)
    address = str(location)
    cache = cache_folder(address)
    copy = cache / complete_manifest(address).fingerprint
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # all ranks of a training ask for the same data set
        if not copy.is_dir():
            pull(address, copy)
    return copy


@contextmanager
def sent(location: str | Path, *, resume: bool = False, replace: bool = False) -> Iterator[Path]:
    """Yield a path to write a directory to: ``location`` itself, or one whose directory is then sent to the address.

    Args:
        resume: Continue what an earlier attempt left on this machine when it was killed before the directory was sent.
        replace: Replace what is at the address.

    Raises:
        UserError: Something is at the address already, or the store refuses.
    """
    if not is_address(location):
        yield Path(location)
        return
    address = str(location)
    if not replace:
        _refuse_existing(address)
    local = cache_folder(address) / "to-send"
    if not resume:
        shutil.rmtree(local, ignore_errors=True)
    yield local
    push(local, address, replace=replace)
    shutil.rmtree(local)


def cache_folder(address: str) -> Path:
    """A folder of this machine for what is fetched from an address or will be sent there."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "recsys" / fingerprint(address)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _refuse_existing(address: str) -> None:
    if RemoteFolder(address).manifest() is not None:
        raise UserError(f"{address} already exists: name another address, or remove it first.")


def complete_manifest(address: str) -> Manifest:
    """The manifest of the directory at an address.

    Raises:
        UserError: There is no complete directory.
    """
    manifest = RemoteFolder(address).manifest()
    if manifest is None:
        raise UserError(f"{address} has no {MANIFEST}: nothing complete is there.")
    return manifest


def _check_space(address: str, manifest: Manifest, folder: Path) -> None:
    wanted, free = sum(entry.bytes for entry in manifest.files.values()), shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"{address} has {wanted} bytes, and {folder.parent} {free} free: free some, or set XDG_CACHE_HOME to a "
            "folder on another disk."
        )


def _check_local(store: Any, root: str, name: str, limit: int | None) -> None:
    """Refuse links, devices and other files of this machine's file system that have no definite size."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(store, LocalFileSystem):
        path = below(Path(root), name)
        if path.is_file():
            _limited(str(path), limit).set_size(path.stat().st_size)


def _limited(file: str, limit: int | None) -> "Callback":
    """Stops a transfer as soon as it is known to have more than ``limit`` bytes."""
    from fsspec.callbacks import Callback

    def check(size: int | None, value: int) -> None:
        if limit is not None and max(size or 0, value) > limit:
            raise UserError(f"{file} has more than the {limit} bytes that are allowed: send the directory again.")

    return Callback(hooks={"limit": check})


@contextmanager
def _store(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of ``address`` and the path in it; its errors as one sentence."""
    from fsspec.core import url_to_fs

    try:
        store, root = url_to_fs(address, use_listings_cache=False)
        yield store, root.rstrip("/")
    except ImportError:
        raise UserError(f"{address} needs a library for this store: run `pip install 'sparse-recsys[lake]'`.") from None
    except FileNotFoundError as error:
        raise _MissingError(f"{address} is not complete ({error}): send the directory again.") from error
    except OSError as error:
        raise UserError(f"{address} cannot be reached: {error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{address} is not an address of a known store: {error}") from None
