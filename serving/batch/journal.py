"""The ledger of a batch job: which parts are done, so that each is done exactly once however often the job is killed.

A job works in a hidden folder beside its output. Every part is written beside, flushed, renamed, and only then entered
here as one line; a line that a kill cut short is not a line. When every part is entered the folder is sealed and
becomes the output in one rename.
"""

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipelines.disk.file_names import FileName
from data_pipelines.disk.storage import checksum, open_directory, seal, sync, write_file
from data_pipelines.errors import UserError

LEDGER = "ledger.ndjson"


class BusyError(UserError):
    """Another process works on the same output."""


class Entry(BaseModel):
    """One finished part: rows read, scores written, rows quarantined, and the checksums of the files it wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    part: int
    rows_in: int
    rows_out: int
    quarantined: int
    files: dict[FileName, str]


class Ledger:
    """The work folder of one job, locked to this process until :meth:`close` or the process's end.

    Args:
        output: Where the finished scores will be.
        terms: What makes two jobs the same job: artifact, input, options. Part of the ledger, checked on resuming.

    Raises:
        UserError: The output exists and was made on other terms, another process works on this job, or the work of a
            killed job was on other terms. (:class:`BusyError` for the second.)
    """

    def __init__(self, output: Path, terms: Mapping[str, Any]) -> None:
        self.output = output
        self.folder = output.parent / f".{output.name}.job"
        self._terms = json.loads(json.dumps(terms))
        self._lock: int | None = None
        self._writing = threading.Lock()
        self.entries: dict[int, Entry] = {}
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
        """Take the lock of the work folder; false when the job turns out to be finished."""
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
        manifest = open_directory(self.output, "scores", verify="sizes")
        if manifest.meta != self._terms:
            raise UserError(
                f"{self.output} holds the scores of another job ({_difference(manifest.meta, self._terms)} differs): "
                "name another output, or remove it first."
            )
        self._read(self.output / LEDGER)
        self.finished = True

    def _resume(self) -> None:
        path = self.folder / LEDGER
        if not path.exists():
            write_file(path, json.dumps(self._terms) + "\n")
            return
        terms = self._read(path)
        if terms != self._terms:
            raise UserError(
                f"the unfinished job at {self.folder} was started with another "
                f"{_difference(terms, self._terms)}: restore it, or remove that folder to start anew."
            )

    def _read(self, path: Path) -> Any:
        """The terms; entries go to ``entries``. A last line that was cut short is removed."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_file(path, whole)
        terms, *lines = whole.splitlines()
        try:
            entries = [Entry.model_validate_json(line) for line in lines]
            self.entries = {entry.part: entry for entry in entries}
            return json.loads(terms)
        except (ValidationError, json.JSONDecodeError):
            raise UserError(f"{path} is damaged: remove {path.parent} and score again.") from None

    def write(self, part: int, scores: pl.DataFrame, quarantined: pl.DataFrame | None, rows_in: int) -> Entry:
        """Write the files of one part and enter it. Several threads may write different parts at once."""
        files = {f"part-{part:05}.parquet": scores}
        if quarantined is not None and len(quarantined):
            files[f"quarantine/part-{part:05}.parquet"] = quarantined
        for name, frame in files.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            beside = path.with_name(f".{path.name}")
            frame.write_parquet(beside)
            sync(beside)
            os.replace(beside, path)
        for folder in {self.folder, *((self.folder / name).parent for name in files)}:
            sync(folder)
        entry = Entry(
            part=part,
            rows_in=rows_in,
            rows_out=len(scores),
            quarantined=0 if quarantined is None else len(quarantined),
            files={name: checksum(self.folder / name).xxh3 for name in files},
        )
        with self._writing, (self.folder / LEDGER).open("ab") as file:
            file.write(entry.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self.entries[part] = entry
        return entry

    def finish(self) -> None:
        """Put the entries in order, seal the folder and make it the output."""
        lines = [json.dumps(self._terms), *(self.entries[part].model_dump_json() for part in sorted(self.entries))]
        for stray in self.folder.rglob(".*"):
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
        write_file(self.folder / LEDGER, "\n".join(lines) + "\n")
        seal(self.folder, "scores", self._terms)
        os.replace(self.folder, self.output)
        sync(self.output.parent)
        self.finished = True
        self.close()

    def abandon(self) -> None:
        """Leave nothing behind, if nothing is done yet."""
        if not self.entries and not self.finished:
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return next((key for key in sorted({*one, *other}) if one.get(key) != other.get(key)), "setting")
