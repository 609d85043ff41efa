"""From a log to the files of a data set, in a few streaming passes whose memory does not grow with the log."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from data_pipelines.dataset.columns import KEY, LABEL, LOG_Q_OF, WEIGHT, PartWriter
from data_pipelines.dataset.lists import arrange
from data_pipelines.dataset.staging import accepted, copied, staged_log
from data_pipelines.dataset.summary import SUMMARY, Summary
from data_pipelines.disk import storage
from data_pipelines.disk.parallel import Engine, Part, merged, parts_of
from data_pipelines.disk.spill import CHUNK_ROWS
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.fitting import check_room, count
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.row_weights import thinned_out
from data_pipelines.features.time_formats import oddities
from data_pipelines.files.base import reading
from data_pipelines.files.formats import scan_files
from data_pipelines.logs import sources
from data_pipelines.logs.negatives import write_with_negatives
from data_pipelines.logs.outcomes import warn_of_outcomes
from data_pipelines.logs.row_counts import Survey, take_survey
from data_pipelines.logs.splits import SPLITS, assign, warn_of_empty
from data_pipelines.logs.undecided import decided_labels, warn_of_undecided
from data_pipelines.logs.validation import check_times, checked, warn_of_absent_positives
from data_pipelines.names import LIST, LOG_Q, REASON, ROW, SOURCE, SPLIT, TIME
from data_pipelines.past.deliveries import Late, fresh_events
from data_pipelines.past.point_in_time import Past, compute
from data_pipelines.past.snapshots import Snapshots
from data_pipelines.past.spans import compute_by_spans
from data_pipelines.past.state import State, save
from data_pipelines.timelines import MINUTE

_LEFT_OUT = ":left_out"
"""Whether a row has no decided label, or is a negative that training does not keep."""


@dataclass(frozen=True)
class Earlier:
    """What a data set to extend has made of the log so far."""

    encoder: Encoder
    state: State | None


def write(
    plan: Plan,
    folder: Path,
    location: str,
    progress: Callable[[int], None],
    earlier: Earlier | None,
    engine: Engine | None = None,
    late: Late = "refuse",
) -> dict[str, int]:
    """Write everything but the manifest into ``folder``; returns the rows of each split.

    Events that ``earlier`` has counted may be delivered again: ``late`` is what to do with them.

    With an ``engine`` values are counted, the past is worked out and rows are encoded part by part, wherever the engine
    has that done: its workers must reach ``location`` and ``folder`` by the same paths.
    """
    with ThreadPoolExecutor(1) as aside, reading(location), TemporaryDirectory(dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        log = staged_log(plan, location, scratch, engine)
        source = log.frame
        check_times(plan, source, location)
        rows = checked(plan, source)
        survey = take_survey(plan, rows, location, log.refused)
        _warn_of_times(plan, survey, location)
        _quarantine(rows, survey, folder)
        if len(log.refused):
            log.refused.write_parquet(folder / "quarantine_lines.parquet")
        total, refused = survey.total, survey.refused
        rows = accepted(plan, source, scratch, engine) if refused else rows
        fresh = fresh_events(plan, rows, location, None if earlier is None else earlier.state, late)
        if survey.rows == fresh.duplicates + fresh.dropped:
            raise UserError(f"{location}: every event was counted before, so there is nothing to add.")
        if fresh.duplicates or fresh.dropped:
            rows, survey = fresh.rows, take_survey(plan, fresh.rows, location, log.refused)
            rows = copied(rows, scratch / "fresh.arrow", engine)
        rows = assign(plan, rows.drop(REASON), survey, scratch)
        if plan.config.drawing is not None:
            rows, survey = _sampled(plan, rows, survey, location, folder, scratch)
            rows = copied(rows, scratch / "sampled.arrow", engine)
        train = rows.filter(pl.col(SPLIT) == 0)
        check_room(plan, train, survey.rows)
        counted = None if engine is None else _counted(engine, plan, rows, survey.rows)
        unmatched = sources.unmatched_shares(plan, rows)
        warn_of_absent_positives(plan, rows)
        outcomes = warn_of_outcomes(plan, train, survey.rows)
        undecided = warn_of_undecided(plan, rows, survey)
        encoder = Encoder.fit(plan, train, None if earlier is None else earlier.encoder, counted)
        # It takes one thread, and so does indexing the vocabularies before the first row is encoded.
        saved = aside.submit(encoder.save, folder)
        past = _past(plan, encoder, rows, survey, folder, scratch, None if earlier is None else earlier.state, engine)
        grouped = plan.config.group is not None
        splits = _encode(plan, encoder, rows, survey, past, scratch if grouped else folder, progress, engine)
        if grouped:
            _arrange(plan, encoder, location, scratch / "splits", folder / "splits")
    if splits["train"] == 0:
        raise UserError(f"{location}: no row falls into the training split: check the key `split`.")
    warn_of_empty(plan, splits, survey)
    saved.result()
    profile = {"rows": total, "left_out": log.left_out, "refused": refused, "splits": splits, "tables": _sizes(encoder)}
    profile |= {"duplicates": fresh.duplicates, "outcomes": outcomes, "side_tables": unmatched}
    profile |= {"undecided": undecided} if undecided else {}
    (folder / "profile.json").write_text(json.dumps(profile, indent=1))
    (folder / SUMMARY).write_text(Summary.of(folder, encoder.schema, SPLITS).model_dump_json(indent=1))
    return splits


def _warn_of_times(plan: Plan, survey: Survey, location: str) -> None:
    if plan.time is not None:
        assert survey.last is not None
        minutes = survey.minutes["minute"].to_numpy()
        for oddity in oddities(int(minutes[0]) * MINUTE, survey.last, np.unique(minutes // 60)):
            warnings.warn(f"{location}: {plan.time}: {oddity} (see the key data.time_format).", Notice, stacklevel=3)


def _quarantine(rows: pl.LazyFrame, survey: Survey, folder: Path) -> None:
    refused = rows.filter(pl.col(REASON).is_not_null())
    if "reason" not in refused.collect_schema():
        refused = refused.rename({REASON: "reason"})
    if not survey.refused:
        refused = pl.LazyFrame(schema=refused.collect_schema())
    refused.sink_parquet(folder / "quarantine.parquet")


def _sampled(
    plan: Plan, rows: pl.LazyFrame, survey: Survey, location: str, folder: Path, scratch: Path
) -> tuple[pl.LazyFrame, Survey]:
    """The rows with their negatives, as if the log had held both. ``candidates.parquet`` says how they were drawn."""
    there = rows.collect_schema()
    raw = [name for name in scan_files(location, plan.config.format).frame.collect_schema() if name in there]
    drawn = scratch / "log.parquet"
    write_with_negatives(plan, rows, raw, drawn).write_parquet(folder / "candidates.parquet")
    drawn_plan = Plan.of(plan.config.model_copy(update={"format": None}))
    source = staged_log(drawn_plan, str(drawn), scratch, None, drawn=True).frame
    rows = checked(plan, source).filter(pl.col(REASON).is_null()).drop(REASON)
    return rows, replace(survey, rows=rows.select(pl.len()).collect(engine="streaming").item())


def _past(
    plan: Plan,
    encoder: Encoder,
    rows: pl.LazyFrame,
    survey: Survey,
    folder: Path,
    scratch: Path,
    base: State | None,
    engine: Engine | None,
) -> Past:
    if not plan.past:
        return Past()
    assert survey.last is not None
    with storage.new_directory(folder / "state", "state") as state:
        latest = survey.last if base is None else max(survey.last, base.latest)
        snapshots = Snapshots(plan, state, latest, base)
        how = compute if engine is None else partial(compute_by_spans, engine)
        past = how(plan, rows, survey.rows, encoder.tables, folder, scratch, snapshots)
        save(snapshots)
    return past


def _count(plan: Plan, rows: pl.LazyFrame, part: Part) -> list[pl.DataFrame]:
    return count(plan, part.of(rows).filter(pl.col(SPLIT) == 0))


def _counted(engine: Engine, plan: Plan, rows: pl.LazyFrame, size: int) -> list[pl.DataFrame]:
    """What :func:`data_pipelines.features.fitting.count` gives for the training rows, counted part by part."""
    return merged(engine(partial(_count, plan, rows), parts_of(size)), _added_up)


def _added_up(counts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counts).group_by("value").agg(pl.col("count").cast(pl.Int64).sum())


def _encode(
    plan: Plan,
    encoder: Encoder,
    rows: pl.LazyFrame,
    survey: Survey,
    past: Past,
    folder: Path,
    progress: Callable[[int], None],
    engine: Engine | None,
) -> dict[str, int]:
    raw = RawColumns(rows.collect_schema())
    labels = decided_labels(plan, raw, survey)
    carried = [label.alias(LABEL + task) for task, label in labels.items()]
    carried += [plan.weight(task, raw).alias(WEIGHT + task) for task in plan.weighted_tasks]
    carried += [pl.col(LOG_Q).alias(LOG_Q_OF + task) for task in plan.corrected_tasks]
    carried += [_plain(name, raw.schema.get(name)).alias(KEY + name) for name in plan.keys]
    carried += [pl.col(name) for name in (TIME, ROW, SPLIT) if name in raw.schema]
    left_out = pl.all_horizontal(label.is_null() for label in labels.values())
    if plan.kept_negatives is not None:
        assert plan.config.sampling is not None
        negative = (pl.col(SPLIT) == 0) & plan.is_negative(raw)
        left_out |= thinned_out(negative, plan.kept_negatives, plan.config.sampling.seed)
    if plan.kept_negatives is not None or plan.label_windows:
        carried.append(left_out.alias(_LEFT_OUT))
    if plan.has_lists:
        carried.append(plan.list_key(raw).alias(LIST))
    encoding = _Encoding.of(plan, encoder, carried, past)
    if engine is None:
        chunks = encoding.stream(rows)
    else:
        chunks = _rechunked(engine(partial(encoding.of_part, rows), parts_of(survey.rows)), CHUNK_ROWS)
    writers = {split: PartWriter(folder / "splits" / split) for split in SPLITS}
    for chunk in chunks:
        done = len(chunk)
        if _LEFT_OUT in chunk.columns:
            chunk = chunk.filter(~pl.col(_LEFT_OUT)).drop(_LEFT_OUT)
        codes = chunk[SPLIT]
        chunk = chunk.drop(SPLIT)
        for code, split in enumerate(SPLITS):
            here = (codes == code).fill_null(False)
            writers[split].write(chunk if here.all() else chunk.filter(here))
        progress(done)
    for writer in writers.values():
        writer.close()
    return {split: writer.rows for split, writer in writers.items()}


def _arrange(plan: Plan, encoder: Encoder, location: str, encoded: Path, out: Path) -> None:
    """Make the rows of each list neighbours; refuse a log without lists of several rows."""
    found = sum(arrange(encoder, encoded / split, out / split) for split in SPLITS)
    if not found:
        raise UserError(
            f"{location}: no two rows are of one list: `group: [{', '.join(plan.config.group or ())}]` must name the "
            "columns that rows shown together share, such as a session and a time."
        )


def _plain(name: str, dtype: pl.DataType | None) -> pl.Expr:
    """A key, as text if it is categorical: parts share a file but have different categories."""
    return pl.col(name).cast(pl.String) if isinstance(dtype, pl.Categorical | pl.Enum) else pl.col(name)


@dataclass(frozen=True)
class _Encoding:
    """How rows become the encoded rows of a data set.

    Attributes:
        encoder: Of the features that are computed from a row alone.
        carried: More columns of the row.
        past: The columns of features that depend on earlier rows.
        compared: Copies of those columns, for relative features.
    """

    encoder: Encoder
    carried: Sequence[pl.Expr]
    past: Past
    compared: Sequence[pl.Expr]

    @staticmethod
    def of(plan: Plan, encoder: Encoder, carried: Sequence[pl.Expr], past: Past) -> "_Encoding":
        later = {
            name for name, feature in plan.relative.items() if feature.of is not None and feature.of.name in plan.past
        }
        compared = [pl.col(plan.relative[name].config.of or "").cast(pl.Float64).alias(name + SOURCE) for name in later]
        alone = encoder.select(name for name in plan.config.inputs if name not in plan.past and name not in later)
        return _Encoding(alone, carried, past, compared)

    def stream(self, rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
        """The encoded rows, chunk by chunk."""
        encoded = self.encoder.encode(rows, carry=self.carried, relate=False)
        chunks = encoded.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming")
        return map(self._completed, chunks)

    def of_part(self, rows: pl.LazyFrame, part: Part) -> pl.DataFrame:
        """The encoded rows of a part of ``rows``."""
        encoded = self.encoder.encode(part.of(rows), carry=self.carried, relate=False)
        return self._completed(encoded.collect(engine="streaming"))

    def _completed(self, chunk: pl.DataFrame) -> pl.DataFrame:
        if not len(chunk):
            return chunk
        times = chunk[TIME].to_numpy() if TIME in chunk.columns else np.empty(0)
        return chunk.with_columns(self.past.take(chunk[ROW].to_numpy(), times)).with_columns(self.compared)


def _rechunked(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The rows of ``frames`` in frames of so many rows."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= rows:
            waiting = pl.concat(held, rechunk=True)
            whole = len(waiting) - len(waiting) % rows
            yield from waiting[:whole].iter_slices(rows)
            held = [waiting[whole:]]
    if held and len(held[0]):
        yield pl.concat(held, rechunk=True)


def _sizes(encoder: Encoder) -> dict[str, int]:
    return {table.name: table.rows for table in encoder.schema.tables}
