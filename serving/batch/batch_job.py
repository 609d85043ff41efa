"""Batch jobs: score raw rows of any size to Parquet, each part exactly once.

A few threads read, encode, score and write parts at the same time, so that reading overlaps with computing and memory
holds only a few parts. Within a part Torch runs on one thread: the bytes of a part do not depend on the number of
threads, nor on where a killed job was resumed.
"""

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial, reduce
from operator import add
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import polars as pl
import torch

from data_pipelines.errors import Notice, UserError
from data_pipelines.files.base import reading
from data_pipelines.past.deliveries import Late
from data_pipelines.past.state import State
from data_pipelines.redaction import redacted
from serving.artifact.artifact import Artifact
from serving.artifact.device import DeviceName, described, scoring_device
from serving.artifact.drift import DriftMonitor
from serving.batch.inputs import Input, Part
from serving.batch.journal import Entry, Ledger
from serving.batch.options import JobOptions, JobResult
from serving.batch.value_counts import ValueCounts
from serving.batch.workers import Engine, Workers, candidates_of, own_threads

_DEFAULTS = JobOptions()
_LIMITS = {"warn_unknown", "max_unknown"}


class ParkedError(Exception):
    """The job was asked to stop. Finished parts are kept, and the same job resumes after them."""


def run_job(
    artifact: Artifact,
    source: str,
    output: Path,
    options: JobOptions = _DEFAULTS,
    *,
    events: str | None = None,
    state: Path | None = None,
    late: Late = "refuse",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Event | None = None,
    drift: DriftMonitor | None = None,
    device: DeviceName = "cpu",
    engine: Engine | None = None,
) -> JobResult:
    """Score every row at ``source`` into ``output``. If the process was killed, the same call resumes the job.

    Args:
        source: Path, glob or address of the rows, in any format that a log may have.
        output: Folder of the scores: ``part-*.parquet`` in the order of the input, ``ledger.ndjson``, a manifest.
        events: A log of what happened since the state. Histories and statistics include it.
        state: The state to read the past from; the artifact's own if absent.
        late: What to do with ``events`` that are not later than the state's latest event.
        threads: Parts that are scored at the same time; by default, one per processor.
        progress: Called with rows newly done (first with those done before a kill) and rows in all.
        stop: When set, the running parts are finished and :class:`ParkedError` is raised.
        device: Where this process computes (see :class:`serving.batch.scorer.Scorer`). A job that was started on a GPU
            is not resumed on a CPU, nor the other way round: its scores would be of two precisions.
        engine: Who scores the parts; ``threads`` threads of this process if absent. Only this process writes.

    Raises:
        UserError: The input cannot be read or lacks a column; it or the artifact changed since the job was started, or
            the device did; there is no GPU, or another engine than threads is to use one;
            another process works on it; the output is that of another job, or damaged; scores are NaN or infinite.
        UnavailableError: The disk of the output is full or read-only.
        ParkedError: ``stop`` was set.

    Example:
        >>> artifact = rs.Artifact.open(Path("artifact"))
        >>> rs.run_job(artifact, "clicks.csv", Path("job"), rs.JobOptions(logits=True)).rows_out
        600
    """
    plan, place = artifact.encoder.served, scoring_device(device)
    if engine is not None and place.type != "cpu":
        raise UserError("only the threads of this process can score on a GPU: set device to cpu for another engine.")
    rows = Input.find(source, plan, artifact.find)
    candidates = None if options.candidates is None else candidates_of(artifact, options.candidates)
    terms = _terms(artifact, rows, candidates, options, place, events=events, state=state, late=late)
    ledger, rate = Ledger(output, terms), None
    try:
        if not ledger.finished:
            parts = _parts(artifact, rows, candidates, ledger)
            past = state if events is None else _state(state or artifact.state, events, late, ledger.folder / ".state")
            workers = (engine or partial(own_threads, threads, drift, device))(artifact, options, past)
            rate = _score_parts(workers, parts, ledger, progress, stop)
            if rows.fingerprint() != terms["input"]:
                raise UserError(f"{source} changed while it was scored: remove {ledger.folder} and score it again.")
        counts = _check_known(artifact, ledger, source, options)
        if not ledger.finished:
            ledger.finish()
    except UserError:
        ledger.abandon()
        raise
    finally:
        ledger.close()
    entries = ledger.entries.values()
    return JobResult(
        output=output,
        rows_in=sum(entry.rows_in for entry in entries),
        rows_out=sum(entry.rows_out for entry in entries),
        quarantined=sum(entry.quarantined for entry in entries),
        parts=len(ledger.entries),
        rescored=ledger.rescored,
        rows_per_s=rate,
        device=described(place),
        unknown=counts.unknown_shares,
        nulls=counts.null_shares,
    )


def _parts(artifact: Artifact, rows: Input, candidates: Input | None, ledger: Ledger) -> list[Part]:
    """The parts of the input, which the ledger then expects."""
    plan = artifact.encoder.served
    fan_out = 1 if candidates is None else max(1, _rows_of(candidates, artifact))
    whole_lists = bool(plan.relative) and candidates is None
    parts = rows.parts(ledger.folder / ".stage", plan, fan_out=fan_out, whole_lists=whole_lists)
    ledger.expect([part.rows for part in parts])
    return parts


def _score_parts(
    workers: AbstractContextManager[Workers],
    parts: Sequence[Part],
    ledger: Ledger,
    progress: Callable[[int, int], None] | None,
    stop: Event | None,
) -> float | None:
    """Score the parts that the ledger lacks.

    Returns:
        Rows per second once the workers are ready; ``None`` if the ledger lacks no row.

    Raises:
        ParkedError: ``stop`` was set before all parts were done.
    """
    total, done = sum(part.rows for part in parts), sum(entry.rows_in for entry in ledger.entries.values())
    todo = [number for number in range(len(parts)) if number not in ledger.entries]
    report = progress or (lambda rows, total: None)
    report(done, total)
    with workers as ready:
        began, scored = perf_counter(), 0

        def score(number: int) -> Entry:
            torch.set_num_threads(1)
            scores, refused, counts = ready.score(parts[number])
            return ledger.write(number, scores, refused, parts[number].rows, counts)

        for entry in _overlapped(score, todo, ready.count, stop):
            scored += entry.rows_in
            report(entry.rows_in, total)
        seconds = perf_counter() - began
    if stop is not None and stop.is_set() and len(ledger.entries) < len(parts):
        raise ParkedError
    assert sorted(ledger.entries) == list(range(len(parts)))
    assert done + scored == total, f"{done + scored} rows went in of {total}"
    return scored / seconds if scored else None


def _terms(
    artifact: Artifact,
    rows: Input,
    candidates: Input | None,
    options: JobOptions,
    place: torch.device,
    *,
    events: str | None,
    state: Path | None,
    late: Late,
) -> dict[str, Any]:
    """What the scores of a job depend on: a job is only resumed under the same terms."""
    terms: dict[str, Any] = {
        "artifact": artifact.fingerprint,
        "input": rows.fingerprint(),
        "events": None if events is None else Input.find(events, artifact.encoder.served).fingerprint(),
        "options": redacted(options.model_dump(exclude=_LIMITS)),
        "candidates": None if candidates is None else candidates.fingerprint(),
    }
    if state is not None:
        terms["state"] = artifact.past_in(state).fingerprint
    if events is not None:
        terms["late"] = late
    if place.type != "cpu":
        terms["device"] = described(place)
    return terms


def _check_known(artifact: Artifact, ledger: Ledger, source: str, options: JobOptions) -> ValueCounts:
    """The counts of all parts.

    Raises:
        UserError: A share of unknown values is above the limit.
    """
    counts = reduce(add, (entry.counts for entry in ledger.entries.values()), ValueCounts())
    trained = artifact.reference.oov if artifact.reference else {}
    why = "they may be spelled differently than in the training log, or come from another column"
    failed = list(counts.above(options.max_unknown, trained))
    if failed and not ledger.finished:
        raise UserError(
            f"{source}: {'; '.join(failed)}: {why}. If this is right, set max_unknown (--max-unknown) to 1 and run the "
            "job again, which keeps what is scored."
        )
    noticed = list(counts.above(options.warn_unknown, trained))
    if noticed:
        warnings.warn(f"{source}: {'; '.join(noticed)}: {why}.", Notice, stacklevel=3)
    return counts


def _overlapped(
    work: Callable[[int], Entry], numbers: Iterable[int], threads: int, stop: Event | None
) -> Iterator[Entry]:
    """Results of ``work`` on ``threads`` threads, as they finish; after ``stop``, only of calls that are running."""
    waiting = iter(numbers)
    running: set[Future[Entry]] = set()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while len(running) < threads and not (stop is not None and stop.is_set()):
                    number = next(waiting, None)
                    if number is None:
                        break
                    running.add(pool.submit(work, number))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def _rows_of(candidates: Input, artifact: Artifact) -> int:
    with reading(candidates.location):
        rows = candidates.scan(artifact.encoder.served)
        return int(rows.select(pl.len()).collect().item())


def _state(state: Path | None, events: str, late: Late, folder: Path) -> Path | None:
    """The past in ``state``, updated by ``events`` in ``folder``; ``None`` without a past.

    A state that an earlier attempt left in ``folder`` is used again unless it is damaged.
    """
    if state is None:
        return None
    try:
        State.open(folder)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        State.open(state).update(events, folder, late=late)
    return folder
