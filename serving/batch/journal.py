"""The journal of a batch job: which parts are done, so that each is done exactly once however often the job is killed.

A job works in a hidden folder next to its output. Every part is written to a temporary file, flushed, renamed, and only
then entered here as one line. When the job is resumed, every entry is compared with its files; a line that a kill cut
short, or whose files have changed, does not count. When every part is entered, the folder is sealed and becomes the
output by one rename.
"""

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from data_pipelines.disk.file_names import FileName
from data_pipelines.disk.ledger import append_entry, parse_lines, read_lines, write_entries
from data_pipelines.disk.storage import (
    MANIFEST,
    FileEntry,
    checksum,
    fingerprint,
    open_directory,
    seal,
    sync,
)
from data_pipelines.errors import UserError, writing
from serving.batch.value_counts import ValueCounts

LEDGER = "ledger.ndjson"


class BusyError(UserError):
    """Another process works on the same output."""


class Entry(BaseModel):
    """One finished part: rows read, scores written, rows quarantined, its files, and how many values are known."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    part: NonNegativeInt
    rows_in: NonNegativeInt
    rows_out: NonNegativeInt
    quarantined: NonNegativeInt
    files: dict[FileName, FileEntry]
    counts: ValueCounts = ValueCounts()

    def describes(self, folder: Path) -> bool:
        """Whether the files of this part are in ``folder`` unchanged, with the number of rows that the entry says."""
        rows = {_scores_file(self.part): self.rows_out}
        if self.quarantined:
            rows[_quarantine_file(self.part)] = self.quarantined
        if rows.keys() != self.files.keys():
            return False
        try:
            return all(
                (folder / name).stat().st_size == self.files[name].bytes
                and checksum(folder / name) == self.files[name]
                and pq.read_metadata(folder / name).num_rows == count
                for name, count in rows.items()
            )
        except (OSError, pa.ArrowException):
            return False


def _scores_file(part: int) -> str:
    return f"part-{part:05}.parquet"


def _quarantine_file(part: int) -> str:
    return f"quarantine/part-{part:05}.parquet"


class Ledger:
    """The work folder of one job, locked to this process until :meth:`close` or the process's end.

    Args:
        output: Where the finished scores will be.
        terms: What identifies a job: artifact, input, options. Stored in the journal and checked on resuming.

    Attributes:
        entries: The finished parts by number; each describes its files.
        finished: The output exists, is complete, and was made on these terms.
        rescored: How many finished parts of an earlier attempt have to be scored again, because their files or their
            entries were damaged.

    Raises:
        UserError: The output exists and is damaged or was made on other terms, another process works on this job, or
            the work of a killed job was on other terms. (:class:`BusyError` for the third.)
    """

    def __init__(self, output: Path, terms: Mapping[str, Any]) -> None:
        self.output = output
        self.folder = output.parent / f".{output.name}.job"
        self._terms = json.loads(json.dumps(terms))
        self._lock: int | None = None
        self._writing = threading.Lock()
        self.entries: dict[int, Entry] = {}
        self.rescored = 0
        self.finished = False
        try:
            if self._lock_folder():
                self._resume()
            else:
                self._check_finished()
        except BaseException:
            self.close()
            raise

    def _lock_folder(self) -> bool:
        """Take the lock of the work folder; false if the job has finished meanwhile."""
        while not self.output.exists():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = os.open(self.folder, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.output} cannot be written ({error.strerror}): choose another folder.") from None
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise BusyError(f"another process is scoring into {self.output}: wait for it to end.") from None
            if self.folder.exists() and os.path.samestat(os.fstat(self._lock), self.folder.stat()):
                return True
            self.close()
        return False

    def _check_finished(self) -> None:
        # Others may already have read a finished output, so it is never overwritten.
        remedy = f"restore it, or remove {self.output} to score it again"
        manifest = open_directory(self.output, "scores", remedy=remedy)
        if manifest.meta != self._terms:
            raise UserError(
                f"{self.output} holds the scores of another job ({_difference(manifest.meta, self._terms)} differs): "
                "name another output, or remove it first."
            )
        terms, entries, invalid = _read(self.output / LEDGER)
        written = {name: entry for part in entries.values() for name, entry in part.files.items()}
        listed = {name: entry for name, entry in manifest.files.items() if name != LEDGER}
        if terms != self._terms or invalid or written != listed:
            raise UserError(f"{self.output / LEDGER} does not describe the files beside it: {remedy}.")
        self.entries, self.finished = entries, True

    def _resume(self) -> None:
        path = self.folder / LEDGER
        terms, entries, invalid = _read(path)
        if terms is None:
            # It is no longer known which job this work belongs to.
            self.rescored = len(list(self.folder.glob("part-*.parquet")))
            self._remove_all_but(set())
            self._rewrite()
            return
        if terms != self._terms:
            raise UserError(
                f"the unfinished job at {self.folder} was started with another "
                f"{_difference(terms, self._terms)}: restore it, or remove that folder to start again."
            )
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda entry: entry.describes(self.folder), entries.values())
            self.entries = {part: entries[part] for part, same in zip(entries, found, strict=True) if same}
        self.rescored = invalid + len(entries) - len(self.entries)
        self._rewrite()

    def expect(self, rows: Sequence[int]) -> None:
        """Drop entries that are not of a part of the job.

        Args:
            rows: Rows of every part.
        """
        entries = {part: entry for part, entry in self.entries.items() if entry.rows_in in rows[part : part + 1]}
        if len(entries) < len(self.entries):
            self.rescored += len(self.entries) - len(entries)
            self.entries = entries
            self._rewrite()

    def _rewrite(self) -> None:
        """Write the entries in memory to the ledger, in the order of the parts."""
        head = json.dumps({"terms": self._terms, "xxh3": fingerprint(self._terms)})
        write_entries(self.folder / LEDGER, (self.entries[part] for part in sorted(self.entries)), head=head)

    def _remove_all_but(self, names: set[str]) -> None:
        """Remove all other files from the work folder."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in names:
                path.unlink()

    def write(
        self,
        part: int,
        scores: pl.DataFrame,
        quarantined: pl.DataFrame | None,
        rows_in: int,
        counts: ValueCounts | None = None,
    ) -> Entry:
        """Write the files of one part and enter it. Several threads may write different parts at once.

        Raises:
            UnavailableError: The disk is full or read-only; earlier entries are kept.
        """
        with writing(self.folder):
            return self._write(part, scores, quarantined, rows_in, counts or ValueCounts())

    def _write(
        self, part: int, scores: pl.DataFrame, quarantined: pl.DataFrame | None, rows_in: int, counts: ValueCounts
    ) -> Entry:
        frames = {_scores_file(part): scores}
        if quarantined is not None and len(quarantined):
            frames[_quarantine_file(part)] = quarantined
        files = {}
        for name, frame in frames.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            beside = path.with_name(f".{path.name}")
            content = BytesIO()  # for a full disk, Polars says only "transport error"
            frame.write_parquet(content)
            beside.write_bytes(content.getbuffer())
            sync(beside)
            files[name] = checksum(beside)
            os.replace(beside, path)
        for folder in {self.folder, *((self.folder / name).parent for name in files)}:
            sync(folder)
        entry = Entry(
            part=part,
            rows_in=rows_in,
            rows_out=len(scores),
            quarantined=0 if quarantined is None else len(quarantined),
            files=files,
            counts=counts,
        )
        with self._writing:
            append_entry(self.folder / LEDGER, entry)
            self.entries[part] = entry
        return entry

    def finish(self) -> None:
        """Sort the entries, seal the folder and make it the output.

        Raises:
            UserError: A file changed after its part was entered.
            UnavailableError: The disk is full or read-only.
        """
        files = {name: entry for part in self.entries.values() for name, entry in part.files.items()}
        with writing(self.folder):
            self._rewrite()
            self._remove_all_but({LEDGER, *files})
            sealed = seal(self.folder, "scores", self._terms).files
        for name in sorted(files.keys() | sealed.keys() - {LEDGER}):
            if files.get(name) != sealed.get(name):
                (self.folder / MANIFEST).unlink()
                raise UserError(
                    f"{self.folder / name} changed after it was written: score again, nothing else is lost."
                )
        os.replace(self.folder, self.output)
        sync(self.output.parent)
        self.finished = True
        self.close()

    def abandon(self) -> None:
        """Remove the work folder if no part is done yet."""
        if not self.entries and not self.finished:
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _read(path: Path) -> tuple[Any, dict[int, Entry], int]:
    """Terms (``None`` if they cannot be read), entries by part, and how many complete lines are not valid entries.

    The first line holds the terms and their fingerprint, which distinguishes damaged terms from different ones. A last
    line without its end was cut short by a kill.
    """
    try:
        first, *lines = read_lines(path)
        head = json.loads(first)
        terms = head["terms"]
    except (ValueError, TypeError, KeyError):
        return None, {}, 0
    if head.get("xxh3") != fingerprint(terms):
        return None, {}, 0
    entries, invalid = parse_lines(lines, Entry)
    return terms, {entry.part: entry for entry in entries}, invalid


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return next((key for key in sorted({*one, *other}) if one.get(key) != other.get(key)), "setting")
