"""Batch jobs: score raw rows of any size to Parquet, each part exactly once.

A few threads read, encode, score and write parts at the same time, so that reading overlaps with computing and memory
holds only a few parts. Within a part Torch runs on one thread: the bytes of a part do not depend on the number of
threads, nor on where a killed job was resumed.
"""

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from operator import add
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import polars as pl
import torch

from data_pipelines.errors import Notice, UserError
from data_pipelines.files.base import reading
from data_pipelines.names import ROW
from data_pipelines.past.deliveries import Late
from data_pipelines.past.state import State
from data_pipelines.redaction import redacted
from serving.artifact.artifact import Artifact
from serving.artifact.device import DeviceName, described, scoring_device
from serving.artifact.drift import DriftMonitor
from serving.batch.inputs import Input, Part
from serving.batch.journal import Entry, Ledger
from serving.batch.options import JobOptions, JobResult
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer
from serving.batch.value_counts import ValueCounts

_DEFAULTS = JobOptions()
_LIMITS = {"warn_unknown", "max_unknown"}


Scored = tuple[pl.DataFrame, pl.DataFrame | None, ValueCounts]
"""One part: its scores, the refused rows with ``:reason``, and how many of its values are known."""


@dataclass(frozen=True)
class Workers:
    """Scores parts, ``count`` of them at a time: threads of this process, or actors of a cluster."""

    score: Callable[[Part], Scored]
    count: int


Engine = Callable[[Artifact, JobOptions, Path | None], AbstractContextManager[Workers]]
"""Makes the workers of a job; the path is the state to read the past from, if it is not the artifact's own."""


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
        threads: Parts in work at a time; one a processor by default.
        progress: Called with rows newly done (first with those done before a kill) and rows in all.
        stop: When set, the parts in work are finished and :class:`ParkedError` is raised.
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
        raise UserError("only threads of this process score on a GPU: leave device at cpu for another engine.")
    rows = Input.find(source, plan, artifact.find)
    candidates = None if options.candidates is None else _candidates(artifact, options.candidates)
    terms = _terms(artifact, rows, candidates, options, place, events=events, state=state, late=late)
    ledger = Ledger(output, terms)
    try:
        began, scored = perf_counter(), 0
        if not ledger.finished:
            fan_out = 1 if candidates is None else max(1, _rows_of(candidates, artifact))
            parts = rows.parts(
                ledger.folder / ".stage", plan, fan_out=fan_out, whole_lists=bool(plan.relative) and candidates is None
            )
            ledger.expect([part.rows for part in parts])
            total = sum(part.rows for part in parts)
            done = sum(entry.rows_in for entry in ledger.entries.values())
            past = state if events is None else _state(state or artifact.state, events, late, ledger.folder / ".state")
            todo = [number for number in range(len(parts)) if number not in ledger.entries]
            if progress is not None:
                progress(done, total)
            engine = engine or partial(_threads, threads, drift, device)
            with engine(artifact, options, past) as workers:
                began = perf_counter()

                def score(number: int) -> Entry:
                    torch.set_num_threads(1)
                    scores, refused, counts = workers.score(parts[number])
                    return ledger.write(number, scores, refused, parts[number].rows, counts)

                for entry in _overlapped(score, todo, workers.count, stop):
                    done, scored = done + entry.rows_in, scored + entry.rows_in
                    if progress is not None:
                        progress(entry.rows_in, total)
            if stop is not None and stop.is_set() and len(ledger.entries) < len(parts):
                raise ParkedError
            if rows.fingerprint() != terms["input"]:
                raise UserError(f"{source} changed while it was scored: remove {ledger.folder} and score it again.")
            assert sorted(ledger.entries) == list(range(len(parts)))
            assert done == total, f"{done} rows went in of {total}"
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
        rows_per_s=scored / (perf_counter() - began) if scored else None,
        device=described(place),
        unknown=counts.unknown_shares,
        nulls=counts.null_shares,
    )


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


@contextmanager
def _threads(
    count: int | None,
    drift: DriftMonitor | None,
    device: DeviceName,
    artifact: Artifact,
    options: JobOptions,
    state: Path | None,
) -> Iterator[Workers]:
    scorer = Scorer(artifact, state=state, device=device)
    yield Workers(partial(score_part, scorer, options, drift=drift), count or torch.get_num_threads())


def score_part(scorer: Scorer, options: JobOptions, part: Part, *, drift: DriftMonitor | None = None) -> Scored:
    """Read one part and score it.

    Raises:
        UserError: The part cannot be read, or lacks a column.
    """
    if options.candidates is not None:
        scores, counts = _score_pairs(_pairs(scorer, options.candidates), options, part)
        return scores, None, counts
    with reading(part.source):
        raw = part.scan()
        rows = scorer.read(raw).collect().with_row_index(ROW, offset=part.first_row)
        counts = ValueCounts(joined=tuple(sorted({*rows.columns} - {ROW, *raw.collect_schema()})))
    assert len(rows) == part.rows
    with _naming(part.source):
        rows, refused = scorer.split(rows) if options.bad_rows == "quarantine" else (rows, None)
        scores = scorer.score(rows, logits=options.logits, drift=drift, counts=counts)
    assert len(scores) + (0 if refused is None else len(refused)) == part.rows
    return scores, refused, counts


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Name the file in errors about its columns."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{source}: {error}") from None


def _candidates(artifact: Artifact, location: str) -> Input:
    return Input.find(location, artifact.encoder.served, artifact.find)


def _rows_of(candidates: Input, artifact: Artifact) -> int:
    with reading(candidates.location):
        rows = candidates.scan(artifact.encoder.served)
        return int(rows.select(pl.len()).collect().item())


@lru_cache(maxsize=2)
def _pairs(scorer: Scorer, candidates: str) -> PairScorer:
    with reading(candidates):
        rows = _candidates(scorer.artifact, candidates).scan(scorer.artifact.encoder.served).collect()
    with _naming(candidates):
        return PairScorer(scorer, rows)


def _score_pairs(pairs: PairScorer, options: JobOptions, part: Part) -> tuple[pl.DataFrame, ValueCounts]:
    with reading(part.source):
        users = part.scan().collect().with_row_index(ROW, offset=part.first_row)
    counts = ValueCounts()
    with _naming(part.source):
        if options.top_k:
            scores = pairs.top_k(users, options.top_k, counts=counts)
        else:
            scores = pairs.all_pairs(users, counts=counts)
    assert len(scores) == part.rows * min(options.top_k or pairs.candidates, pairs.candidates)
    return scores, pairs.candidate_counts + counts


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
