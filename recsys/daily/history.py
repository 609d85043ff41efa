"""The folder of daily training: finished days, the unfinished day, and which artifact is the current one.

``days.ndjson`` is the ledger, one line per finished day. The link ``current`` follows its last line, and is set again
if a kill came between the two. Each day has a folder: ``days/0001``, ``days/0002`` and so on.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from data_pipelines.disk.damage import read_json
from data_pipelines.disk.file_names import FileName, below
from data_pipelines.disk.ledger import append_entry, locked, parse_lines, read_lines, write_entries
from data_pipelines.disk.storage import sync, write_file
from data_pipelines.errors import UserError
from recsys.evaluation.standing import Difference
from serving.artifact.card import Value

LEDGER, DAYS, CURRENT, BEGUN = "days.ndjson", "days", "current", "begun.json"
DATASET, RUN, ARTIFACT, KEPT = "dataset", "run", "artifact", "kept"


class Day(BaseModel):
    """A day that is done: one line of the ledger.

    Attributes:
        number: Its number, from 1.
        log: The log, without credentials.
        log_checksum: Of the content of the log.
        rows: Rows of each split.
        refused: Rows that were refused, by reason.
        late: Rows at or before the last row of the days before.
        latest: Time of the latest row of this day and all days before, in microseconds since 1970; ``None`` where the
            log has no time.
        switched: Whether the model of this day became the current one.
        reasons: Why not; empty if it did.
        model: Number of the day whose model is the current one.
        artifact: The current artifact, below the folder of all days.
        metrics: The main metric of the first task on the test rows of this day: of the ``run``, of the ``artifact``,
            and of ``yesterday``'s artifact, which has seen no row of this day.
        difference: Today's artifact compared with yesterday's on these rows; ``None`` on the first day.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    number: int = Field(ge=1)
    log: str
    log_checksum: str
    rows: dict[str, int]
    refused: dict[str, int]
    late: int = Field(ge=0)
    latest: int | None
    switched: bool
    reasons: list[str]
    model: int = Field(ge=1)
    artifact: FileName
    metric: str
    metrics: dict[str, Value]
    difference: Difference | None = None


class Begun(BaseModel):
    """What the unfinished day is made from: the log, the checksum of its content, and the fingerprint of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    log: str
    log_checksum: str
    config: str


class History:
    """The days of one folder; use :meth:`open`.

    Attributes:
        folder: The folder.
        days: The days that are done, the first one first.
    """

    def __init__(self, folder: Path, days: list[Day]) -> None:
        self.folder, self.days = folder, days

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator["History"]:
        """Lock the folder, read its ledger, and set the link ``current`` if a kill came before that.

        Raises:
            UserError: The folder holds something else, is in use, cannot be written, or its ledger is damaged.
        """
        ledger = folder / LEDGER
        try:
            strange = folder.exists() and not ledger.exists() and any(p.name[0] != "." for p in folder.iterdir())
            if strange and not (folder / DAYS).is_dir():
                raise UserError(
                    f"{folder} exists and holds something else: name a new folder, or one of `recsys daily`."
                )
            (folder / DAYS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from None
        with locked(folder, f"another process works in {folder}: wait for it to end."):
            days, invalid = parse_lines(read_lines(ledger), Day)
            if invalid or [day.number for day in days] != list(range(1, len(days) + 1)):
                raise UserError(f"{ledger} is damaged: restore it, or begin again in a new folder.")
            write_entries(ledger, days)  # without a line that a kill cut short
            history = cls(folder, days)
            history.switch()
            yield history

    @property
    def last(self) -> Day | None:
        """The last day that is done."""
        return self.days[-1] if self.days else None

    @property
    def current(self) -> Path:
        """The link to the current artifact."""
        return self.folder / CURRENT

    def day_of(self, log_checksum: str) -> Day | None:
        """The day that was made from a log of this content."""
        return next((day for day in self.days if day.log_checksum == log_checksum), None)

    def path(self, number: int, name: str = "") -> Path:
        """A place in the folder of a day."""
        return self.folder / DAYS / f"{number:04}" / name

    @property
    def work(self) -> Path:
        """The folder of the unfinished day."""
        return self.path(len(self.days) + 1)

    def begin(self, begun: Begun) -> Path:
        """Start a day: make its folder, or return the one that an interrupted call left for the same day.

        Raises:
            UserError: Another day was begun and not finished, or this one with another config.
        """
        if not (self.work / BEGUN).exists():
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()
            write_file(self.work / BEGUN, begun.model_dump_json())
            return self.work
        there = read_json(below(self.work, BEGUN), Begun)
        if there.log_checksum != begun.log_checksum:
            raise UserError(
                f"the day of {there.log} was begun and not finished: run it again first, or remove {self.work} to "
                "leave that day out."
            )
        if there.config != begun.config:
            raise UserError(
                f"the day of {there.log} was begun with another config: run it again with that one, or remove "
                f"{self.work} to begin again."
            )
        return self.work

    def discard(self) -> None:
        """Remove the folder of the unfinished day."""
        shutil.rmtree(self.work, ignore_errors=True)

    def record(self, day: Day) -> None:
        """Enter a day into the ledger: from then on it is done."""
        append_entry(self.folder / LEDGER, day)
        self.days.append(day)

    def switch(self) -> None:
        """Point the link ``current`` to the artifact of the last day, in one step."""
        if self.last is None:
            return
        link, target = self.current, self.last.artifact
        if link.is_symlink() and os.readlink(link) == target:
            return
        beside = self.folder / f".{CURRENT}"
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        os.replace(beside, link)
        sync(self.folder)

    def remove_old(self, keep: int) -> None:
        """Remove the folders of all but the last ``keep`` days, and but those that the next day needs."""
        assert self.last is not None
        needed = {self.last.number, self.last.model}
        for day in self.days[:-keep]:
            if day.number not in needed:
                shutil.rmtree(self.path(day.number), ignore_errors=True)
