"""All formats of files, and which one a location has: by its suffix, or by its first bytes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import PlainValidator, SerializeAsAny

import data_pipelines.files.libsvm  # noqa: F401  (registers the format)
from data_pipelines.errors import UserError
from data_pipelines.files.base import FileFormat, Scan, flat, reading, roots
from data_pipelines.files.csv import CsvFormat
from data_pipelines.files.delta import DeltaFormat
from data_pipelines.files.find import find_files
from data_pipelines.files.ipc import IpcFormat
from data_pipelines.files.ndjson import NdjsonFormat
from data_pipelines.files.parquet import ParquetFormat
from data_pipelines.files.text import head_of

Format = Annotated[SerializeAsAny[FileFormat], PlainValidator(FileFormat.parse)]
"""The type of a format in a config: any registered one, by its ``kind``."""

_COMPRESSIONS = (".gz", ".zst", ".zlib", ".bz2")
_TABS = (".tsv", ".inter")
_MAGIC: dict[bytes, FileFormat] = {b"PAR1": ParquetFormat(), b"ARROW1": IpcFormat(), b"{": NdjsonFormat()}


Find = Callable[[str], list[str]]
"""Gives the files of a path, a folder, a glob or an address, or refuses it with :class:`UserError`."""


def scan_files(
    location: str,
    format: FileFormat | None = None,
    *,
    needed: frozenset[str] | None = None,
    files: Sequence[str] | None = None,
) -> Scan:
    """One lazy frame over a file, a folder, a glob or an object-store address; nested objects are columns.

    Args:
        format: How to read it; ``None`` to go by the suffix, or by the first bytes.
        needed: Columns that will be read; of others, files may disagree on the type. All columns if absent.
        files: The files at ``location``, where they have been found already.

    Raises:
        UserError: Nothing is there, of an unknown format, or a file cannot be read.
    """
    paths = find_files(location) if files is None else list(files)
    with reading(location):
        format = format or format_of(location, paths)
        scan = format.scan(location, paths, None if needed is None else roots(needed))
        # On a copy: once a scan knows its schema, row numbers and later slices are no longer pushed down to it.
        scan.frame.clone().collect_schema()
    return replace(scan, frame=flat(scan.frame))


def format_of(location: str, paths: Sequence[str]) -> FileFormat:
    """The format that the suffixes of ``paths`` stand for, or else the first bytes of the first file.

    Raises:
        UserError: Neither is known, or the suffixes stand for several formats.
    """
    if Path(location, "_delta_log").is_dir():
        return DeltaFormat()
    found = {by_suffix(path.split("?")[0] if "://" in path else path) for path in paths}
    if len(found) > 1:
        raise UserError(f"{location} holds files of several formats: name those of one, or set the key `format`.")
    format = found.pop() if found else None
    if format is None and "://" not in location:
        format = _by_content(paths[0])
    if format is None:
        raise UserError(
            f"{location}: neither the file name nor its first bytes tell the format; set the key `format`, such as "
            "{kind: csv}."
        )
    return format


def by_suffix(name: str) -> FileFormat | None:
    """The format of a file by its suffix, without that of a compression; ``None`` if no format has this suffix."""
    path = Path(name)
    while path.suffix in _COMPRESSIONS:
        path = path.with_suffix("")
    if path.suffix in _TABS:
        return CsvFormat(delimiter="\t")
    return next((kind() for kind in FileFormat.kinds().values() if path.suffix in kind.suffixes), None)


def _by_content(path: str) -> FileFormat | None:
    head = head_of(path)
    for magic, format in _MAGIC.items():
        if head.startswith(magic):
            return format
    lines = head.decode("utf-8", errors="replace").splitlines()[:5]
    for delimiter in "\t;|,":
        counts = {line.count(delimiter) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts != {0}:
            return CsvFormat(delimiter=delimiter)
    return None
