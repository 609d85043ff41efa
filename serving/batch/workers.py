"""The workers of a batch job: how one part is read and scored, and the threads that score several at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import polars as pl
import torch

from data_pipelines.errors import UserError
from data_pipelines.files.base import reading
from data_pipelines.names import ROW
from serving.artifact.artifact import Artifact
from serving.artifact.device import DeviceName
from serving.artifact.drift import DriftMonitor
from serving.batch.inputs import Input, Part
from serving.batch.options import JobOptions
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer
from serving.batch.value_counts import ValueCounts

Scored = tuple[pl.DataFrame, pl.DataFrame | None, ValueCounts]
"""One part: its scores, the refused rows with ``:reason``, and how many of its values are known."""


@dataclass(frozen=True)
class Workers:
    """Scores parts, ``count`` of them at a time: threads of this process, or actors of a cluster."""

    score: Callable[[Part], Scored]
    count: int


Engine = Callable[[Artifact, JobOptions, Path | None], AbstractContextManager[Workers]]
"""Makes the workers of a job; the path is the state to read the past from, if it is not the artifact's own."""


@contextmanager
def own_threads(
    count: int | None,
    drift: DriftMonitor | None,
    device: DeviceName,
    artifact: Artifact,
    options: JobOptions,
    state: Path | None,
) -> Iterator[Workers]:
    """``count`` threads of this process, one per thread of Torch if ``None``, that share one scorer."""
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


def candidates_of(artifact: Artifact, location: str) -> Input:
    return Input.find(location, artifact.encoder.served, artifact.find)


@lru_cache(maxsize=2)
def _pairs(scorer: Scorer, candidates: str) -> PairScorer:
    with reading(candidates):
        rows = candidates_of(scorer.artifact, candidates).scan(scorer.artifact.encoder.served).collect()
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
