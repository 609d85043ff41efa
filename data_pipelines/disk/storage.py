"""Directories that are complete or absent: write beside, fsync, rename; a manifest with checksums inside.

Every directory the product writes (data set, state, run, checkpoint, artifact, scores) goes through
:func:`new_directory` and is read through :func:`open_directory`.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipelines.errors import UserError
from data_pipelines.redaction import redacted

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20


class FileEntry(BaseModel):
    """Size in bytes and XXH3-128 checksum (hex) of one file of a directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int
    xxh3: str


class Manifest(BaseModel):
    """What a directory is, what made it, and the checksum of every file in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    format: int
    made_by: dict[str, str]
    meta: dict[str, Any]
    files: dict[str, FileEntry]

    @classmethod
    def of(cls, kind: str, meta: Mapping[str, Any], files: Mapping[str, FileEntry]) -> "Manifest":
        """The manifest of a directory that this version makes; addresses in ``meta`` without their credentials."""
        made_by = {name: version(name) for name in ("sparse-recsys", "polars", "torch")}
        return cls(kind=kind, format=FORMAT, made_by=made_by, meta=redacted(meta), files=dict(files))

    @property
    def fingerprint(self) -> str:
        """Name of the content: changes when any file or any entry of ``meta`` changes."""
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
    """Yield a path beside ``path`` to write to; on success fsync it and rename it, else leave nothing.

    Raises:
        UserError: The parent folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose a folder you may write to.") from None
    os.close(descriptor)
    beside = Path(name)
    try:
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
    """Yield a folder beside ``path``; on success write its manifest, fsync all, and rename it to ``path``.

    ``meta`` is read when the block ends, so that the block may fill it. If the block raises, or the process dies,
    nothing exists at ``path`` (with ``replace``, what was there before still does). What a process that was killed left
    beside ``path`` is removed by the next one to write there.

    Raises:
        UserError: ``path`` exists and ``replace`` is false, or its parent cannot be written.
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
        beside.chmod(0o755)
        yield beside
        seal(beside, kind, meta or {})
        if path.exists():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, retired / "old")
            os.replace(beside, path)
            shutil.rmtree(retired)
        else:
            os.replace(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    sync(path.parent)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and the descriptor that locks it: until that is closed, or the process dies, it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # Between the two, another process may have taken it for abandoned.
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """The descriptor that locks ``folder``; ``None`` if another has it locked, or removed it."""
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


def seal(folder: Path, kind: str, meta: Mapping[str, Any]) -> None:
    """Write the manifest of ``folder`` over the files it holds now, and fsync everything in it."""
    within = sorted(path for path in folder.rglob("*") if path != folder / MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in within if path.is_file()]
    with ThreadPoolExecutor() as pool:
        # The disk writes while checksums are worked out.
        synced = pool.map(sync, within)
        files = dict(zip(names, pool.map(checksum, (folder / name for name in names)), strict=True))
        deque(synced, maxlen=0)
    write_file(folder / MANIFEST, Manifest.of(kind, meta, files).model_dump_json(indent=1))


def open_directory(path: Path, kind: str, *, verify: Literal["full", "sizes"] = "full") -> Manifest:
    """Read and check the manifest of a directory that :func:`new_directory` made.

    Args:
        verify: ``"full"`` compares every file's checksum; ``"sizes"`` only its size.

    Raises:
        UserError: No such directory, not one of ``kind``, of another format, or a file missing or changed.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: give the path of {_a(kind)}.")
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} has no {MANIFEST}: it is not {_a(kind)}.") from None
    except ValidationError:
        raise UserError(f"{path / MANIFEST} is damaged: make the {kind} again.") from None
    if manifest.kind != kind:
        raise UserError(f"{path} is {_a(manifest.kind)}, not {_a(kind)}.")
    if manifest.format != FORMAT:
        raise UserError(
            f"{path} has format {manifest.format}, this version reads format {FORMAT}: make the {kind} again, "
            f"or use the version that made it ({manifest.made_by.get('sparse-recsys', 'unknown')})."
        )
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing: make the {kind} again or restore it.")
        actual = checksum(file) if verify == "full" else entry
        if file.stat().st_size != entry.bytes or actual != entry:
            raise UserError(f"{file} is damaged (its checksum is off): make the {kind} again or restore it.")
    return manifest


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
