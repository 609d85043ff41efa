"""Scoring files of any size with one call: what ``recsys score`` does."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from data_pipelines.disk.object_store import sent
from data_pipelines.errors import UserError
from data_pipelines.past.deliveries import Late
from serving.artifact.artifact import Artifact
from serving.artifact.device import DeviceName
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions, JobResult
from serving.batch.workers import Engine

__all__ = ["score"]


def score(
    artifact: Artifact | Path | str,
    source: str,
    output: Path | str,
    *,
    events: str | None = None,
    state: Path | str | None = None,
    late: Late = "refuse",
    bad_rows: Literal["quarantine", "score"] = "quarantine",
    logits: bool = False,
    candidates: str | None = None,
    top_k: int | None = None,
    warn_unknown: float = 0.5,
    max_unknown: float = 0.99,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: DeviceName = "cpu",
    engine: Engine | None = None,
) -> JobResult:
    """Score every row at ``source`` into ``output``. If the process was killed, the same call resumes the job.

    Args:
        artifact: An opened artifact, or the folder of one, whose checksums are then compared in full.
        source: Path, folder, glob or address of the rows, in any format that a log may have.
        output: Folder of the scores, or an address to send it to. Scores are ``part-*.parquet`` in the order of
            ``source``: its key columns and one column per task.
        events: A log of what happened since the artifact, or ``state``, was made. Histories and statistics include it.
        state: A state to read the past from instead of the artifact's own, such as ``recsys state update`` writes.
        late: What to do with ``events`` that are not later than the latest event of the state, which may have them
            already: ``refuse`` them, ``drop`` them, or ``count`` them.
        bad_rows: What to do with rows that hold an invalid value: ``quarantine`` writes them to
            ``quarantine/*.parquet`` with the reason; ``score`` reads the value as null.
        logits: Add a column ``<task>:logit`` per task.
        candidates: A table of candidates that fits in memory. Each row of ``source`` is then a user, who is scored with
            every candidate.
        top_k: Keep only so many candidates per user, those with the highest ``score``; without a formula, with the
            highest prediction of the first task.
        warn_unknown: Share of unknown values of a feature, or of nulls of a joined column, from which a
            :class:`data_pipelines.errors.Notice` is issued.
        max_unknown: Share above which the job fails. The same call with a larger limit keeps what is scored.
        threads: Parts that are scored at a time; one per processor if absent.
        progress: Called with the number of rows newly done and the number of rows in total.
        device: Where lookups and dense part are computed: ``cpu``, ``cuda``, or ``auto`` for the GPU that Torch sees.
            On a GPU, scores differ from a CPU's in the third digit (bfloat16), and a job is resumed on a GPU only.
        engine: Scores the parts; threads of this process if absent.

    Returns:
        Rows read, written and quarantined, shares of unknown and null values, and the rate in rows per second.

    Raises:
        UserError: An option does not fit another, the input cannot be read or lacks a column, scores are NaN or
            infinite, too many values are unknown, or ``output`` belongs to another job.
        UnavailableError: The disk of ``output`` is full or read-only.

    Example:
        >>> rs.score("artifact", "clicks.csv", "scores").rows_out
        600
    """
    if top_k is not None and candidates is None:
        raise UserError("top_k (--top-k) chooses among candidates: name their table with candidates (--candidates).")
    if logits and candidates is not None:
        raise UserError("logits (--logits) are written for rows, not for candidates: leave one of the two out.")
    options = JobOptions(
        bad_rows=bad_rows,
        logits=logits,
        candidates=candidates,
        top_k=top_k,
        warn_unknown=warn_unknown,
        max_unknown=max_unknown,
    )
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(Path(artifact), verify="full")
    with sent(str(output), resume=True) as folder:
        return run_job(
            opened,
            source,
            folder,
            options,
            events=events,
            state=None if state is None else Path(state),
            late=late,
            threads=threads,
            progress=progress,
            device=device,
            engine=engine,
        )
