"""Directories that are complete or absent: write beside, fsync, rename; a manifest with checksums inside.

Every directory the product writes (data set, state, run, checkpoint, artifact, scores) goes through
:func:`new_directory` and is read through :func:`open_directory`.
"""

import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_pipelines.disk.damage import reason_of
from data_pipelines.disk.exchange import replace_directory
from data_pipelines.disk.file_names import FileName, below
from data_pipelines.errors import UserError, writing
from data_pipelines.extensions import check as check_extensions
from data_pipelines.redaction import redacted

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 16 << 20
"""In bytes; enough for more than 100,000 files."""
FORMAT = 1
_CHUNK = 1 << 20


class FileEntry(BaseModel):
    """Size in bytes and XXH3-128 checksum (hex) of one file of a directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int = Field(ge=0)
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")


class Manifest(BaseModel):
    """What a directory is, what made it, and the checksum of every file in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str = Field(min_length=1)
    format: int
    made_by: dict[str, str]
    meta: dict[str, Any]
    files: dict[FileName, FileEntry]

    @field_validator("files", mode="after")
    @classmethod
    def _apart(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        """No file has the name of the manifest, or of a folder with other files."""
        folders = {name[:at] for name in files for at, letter in enumerate(name) if letter == "/"}
        for name in files:
            if name in folders or name == MANIFEST:
                raise ValueError(f"the file name {name!r} is also the name of a folder or of the manifest")
        return files

    @classmethod
    def of(cls, kind: str, meta: Mapping[str, Any], files: Mapping[str, FileEntry]) -> "Manifest":
        """The manifest of a directory that this version makes; addresses in ``meta`` without their credentials.

        Raises:
            UserError: A file has a name that other machines would refuse.
        """
        made_by = {name: version(name) for name in ("sparse-recsys", "polars", "torch")}
        try:
            return cls(kind=kind, format=FORMAT, made_by=made_by, meta=redacted(meta), files=dict(files))
        except ValidationError as error:
            raise UserError(
                f"a {kind} cannot be written: {reason_of(error)}: choose shorter or plainer names."
            ) from None

    @classmethod
    def read(cls, path: Path, remedy: str = "make the directory again or restore it") -> "Manifest":
        """The manifest in the file at ``path``.

        Args:
            remedy: What the user can do about damage: the end of the error's sentence.

        Raises:
            FileNotFoundError: There is no such file.
            UserError: It is not a manifest, or names a file outside its directory.
        """
        with path.open("rb") as file:
            content = file.read(LARGEST_MANIFEST + 1)
        if len(content) > LARGEST_MANIFEST:
            raise UserError(f"{path} is larger than {LARGEST_MANIFEST} bytes: it is not a manifest of this product.")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise UserError(f"{path} is damaged ({reason_of(error)}): {remedy}.") from None

    @property
    def fingerprint(self) -> str:
        """Names the content: it changes when any file or any entry of ``meta`` changes."""
        return fingerprint({"meta": self.meta, "files": {name: entry.xxh3 for name, entry in self.files.items()}})


def fingerprint(value: Any) -> str:
    """XXH3-128 (hex) of ``value`` as canonical JSON: equal values have equal fingerprints in every process."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode())


def checksum(path: Path) -> FileEntry:
    """Size and checksum of the file at ``path``."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return FileEntry(bytes=path.stat().st_size, xxh3=digest.hexdigest())


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; on success fsync and rename it, otherwise leave nothing.

    Raises:
        UserError: The parent folder cannot be written.
        UnavailableError: Its disk is full or read-only.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose a folder you may write to.") from None
    os.close(descriptor)
    beside = Path(name)
    try:
        with writing(path):
            yield beside
            beside.chmod(0o644)
            sync(beside)
            os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a single small file so that it is complete or absent."""
    with new_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_directory(
    path: Path, kind: str, *, meta: Mapping[str, Any] | None = None, replace: bool = False
) -> Iterator[Path]:
    """Yield a folder next to ``path``; on success write its manifest, fsync everything, and rename it to ``path``.

    ``meta`` is read when the block ends, so that the block may fill it. If the block raises, or the process dies,
    nothing exists at ``path`` (with ``replace``, the earlier directory still does). Leftovers of a process that was
    killed are removed by the next process that writes to ``path``.

    Raises:
        UserError: ``path`` exists and ``replace`` is false, or its parent cannot be written.
        UnavailableError: Its disk is full or read-only.
    """
    if path.exists() and not replace:
        raise UserError(f"{path} already exists: name another path, or remove it first.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name}.unfinished."
        _remove_abandoned(path.parent, prefix)
        beside, lock = _locked_directory(path.parent, prefix)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose a folder you may write to.") from None
    try:
        with writing(path):
            beside.chmod(0o755)
            yield beside
            seal(beside, kind, meta or {})
            if path.exists():
                replace_directory(beside, path)
            else:
                os.replace(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    sync(path.parent)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor that locks it until it is closed or the process dies."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # Before it was locked, another process may have removed it as abandoned.
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """The descriptor that locks ``folder``; ``None`` if another process has locked or removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if folder.exists():
        return descriptor
    os.close(descriptor)
    return None


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in (entry for entry in parent.iterdir() if entry.name.startswith(prefix) and entry.is_dir()):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def seal(folder: Path, kind: str, meta: Mapping[str, Any]) -> Manifest:
    """Write the manifest of ``folder`` over the files it holds now, fsync everything in it, and return the manifest."""
    within = sorted(path for path in folder.rglob("*") if path != folder / MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in within if path.is_file()]
    for path in within:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o044 != 0o044:  # safetensors writes files that only their owner can read
            path.chmod(0o644)
    with ThreadPoolExecutor() as pool:
        # The disk writes while checksums are computed.
        synced = pool.map(sync, within)
        files = dict(zip(names, pool.map(checksum, (folder / name for name in names)), strict=True))
        deque(synced, maxlen=0)
    manifest = Manifest.of(kind, meta, files)
    write_file(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def open_directory(
    path: Path, kind: str, *, verify: Literal["full", "sizes"] = "full", remedy: str | None = None
) -> Manifest:
    """Read and check the manifest of a directory that :func:`new_directory` made.

    Args:
        verify: ``"full"`` compares every file's checksum; ``"sizes"`` only its size.
        remedy: What the user can do about damage: the end of the error's sentence.

    Raises:
        UserError: No such directory, not one of ``kind``, of another format, an extension that it needs has not been
            imported, or a file is missing, changed, a device, or a link that leads elsewhere.
    """
    remedy = remedy or f"make the {kind} again or restore it"
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: give the path of {_a(kind)}.")
    manifest = _read_manifest(path, kind, remedy)
    check_manifest(manifest, kind, path)
    for name, entry in manifest.files.items():
        file = below(path, name)
        if not file.is_file():
            raise UserError(f"{file} is missing: {remedy}.")
        actual = checksum(file) if verify == "full" else entry
        if file.stat().st_size != entry.bytes or actual != entry:
            raise UserError(f"{file} is damaged (its checksum does not match): {remedy}.")
    return manifest


def check_manifest(manifest: Manifest, kind: str, place: object) -> None:
    """Refuse a directory of another kind or format, or one that needs an extension.

    Args:
        place: Its path or address.

    Raises:
        UserError: It is not one of ``kind``, of another format, or an extension that it needs has not been imported.
    """
    if manifest.kind != kind:
        raise UserError(f"{place} is {_a(manifest.kind)}, not {_a(kind)}.")
    if manifest.format != FORMAT:
        raise UserError(
            f"{place} has format {manifest.format}, this version reads format {FORMAT}: make the {kind} again, "
            f"or use the version that made it ({manifest.made_by.get('sparse-recsys', 'unknown')})."
        )
    check_extensions(manifest.meta, place)


def complete(path: Path) -> Manifest:
    """The manifest of a directory of any kind, after comparing every checksum.

    Raises:
        UserError: No complete directory, or a file missing or changed.
    """
    return open_directory(path, _read_manifest(path, "complete directory", "make it again").kind)


def _read_manifest(path: Path, kind: str, remedy: str) -> Manifest:
    try:
        return Manifest.read(below(path, MANIFEST), remedy)
    except FileNotFoundError:
        raise UserError(f"{path} has no {MANIFEST}: it is not {_a(kind)}.") from None


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
