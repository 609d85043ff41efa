"""From a log to the files of a data set, in a few streaming passes whose memory does not grow with the log."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from data_pipelines import sources, storage
from data_pipelines.columns import KEY, LABEL, PartWriter
from data_pipelines.encoder import Encoder
from data_pipelines.errors import UserError
from data_pipelines.features import DataConfig
from data_pipelines.past import Past, compute, past_features
from data_pipelines.sampling import write_with_negatives
from data_pipelines.snapshots import Snapshots
from data_pipelines.sources import ROW
from data_pipelines.spill import CHUNK_ROWS
from data_pipelines.splits import SPLIT, SPLITS, Survey, assign
from data_pipelines.state import save
from data_pipelines.validation import REASON, TIME, checked, label


def write(config: DataConfig, folder: Path, location: str, progress: Callable[[int], None]) -> dict[str, int]:
    """Write everything but the manifest into ``folder``; returns the rows of each split."""
    with sources.reading(location):
        rows = checked(config, sources.scan(config, location))
        survey, refused = _survey(config, rows, location)
        rows = assign(config, rows, survey)
        accepted = rows.filter(pl.col(REASON).is_null())
        with TemporaryDirectory(dir=folder) as scratch:
            if config.sampling is not None:
                accepted, survey = _sampled(config, accepted, survey, location, folder, Path(scratch))
            encoder = Encoder.fit(config, accepted.filter(pl.col(SPLIT) == 0))
            past = _past(config, encoder, accepted, survey, folder, Path(scratch))
            splits = _encode(config, encoder, accepted, past, folder, progress)
        rows.filter(pl.col(REASON).is_not_null()).drop(SPLIT).sink_parquet(folder / "quarantine.parquet")
    if splits["train"] == 0:
        raise UserError(f"{location}: no row falls into the training split; look at the key `split`.")
    encoder.save(folder)
    profile = {"rows": survey.rows, "refused": refused, "splits": splits, "tables": _sizes(encoder)}
    (folder / "profile.json").write_text(json.dumps(profile, indent=1))
    return splits


def _sampled(
    config: DataConfig, rows: pl.LazyFrame, survey: Survey, location: str, folder: Path, scratch: Path
) -> tuple[pl.LazyFrame, Survey]:
    """The rows with their negatives, as if the log had held both. ``candidates.parquet`` says how they were drawn."""
    raw = sources.scan_files(location, config.format).collect_schema().names()
    drawn = scratch / "log.parquet"
    write_with_negatives(config, rows, raw, drawn).write_parquet(folder / "candidates.parquet")
    config = config.model_copy(update={"format": None})
    rows = checked(config, sources.scan(config, str(drawn))).filter(pl.col(REASON).is_null())
    return rows, replace(survey, rows=rows.select(pl.len()).collect(engine="streaming").item())


def _survey(config: DataConfig, rows: pl.LazyFrame, location: str) -> tuple[Survey, dict[str, int]]:
    """Count rows by reason of refusal, and see what span of time they cover.

    Raises:
        UserError: No rows, or more refused than ``max_quarantined`` allows.
    """
    time = pl.col(TIME) if config.time is not None else pl.lit(None, dtype=pl.Int64)
    found = (
        rows.group_by(REASON)
        .agg(n=pl.len(), first=time.min(), last=time.max(), row=pl.col(ROW).min())
        .collect(engine="streaming")
        .sort("n", descending=True)
    )
    total = int(found["n"].sum())
    if total == 0:
        raise UserError(f"{location} holds no rows.")
    bad = found.filter(pl.col(REASON).is_not_null())
    refused: dict[str, int] = dict(zip(bad[REASON], bad["n"], strict=True))
    if sum(refused.values()) > config.max_quarantined * total:
        reasons = "; ".join(f"{n:,} x {reason}" for reason, n in list(refused.items())[:3])
        raise UserError(
            f"{location}: {sum(refused.values()):,} of {total:,} rows are refused, more than the share "
            f"{config.max_quarantined} that `max_quarantined` allows: {reasons} (first in row {bad['row'][0] + 1})."
        )
    good = found.filter(pl.col(REASON).is_null())
    if good.is_empty():
        raise UserError(f"{location}: every row is refused.")
    return Survey(good["n"][0], good["first"][0], good["last"][0]), refused


def _past(
    config: DataConfig, encoder: Encoder, rows: pl.LazyFrame, survey: Survey, folder: Path, scratch: Path
) -> Past:
    if not past_features(config):
        return Past()
    assert survey.last is not None
    with storage.new_directory(folder / "state", "state") as state:
        snapshots = Snapshots(config, state, survey.last)
        past = compute(config, rows, survey.rows, encoder.tables, folder, scratch, snapshots)
        snapshots.close()
        save(state, snapshots)
    return past


def _encode(
    config: DataConfig,
    encoder: Encoder,
    rows: pl.LazyFrame,
    past: Past,
    folder: Path,
    progress: Callable[[int], None],
) -> dict[str, int]:
    now = {name for name, feature in config.features.items() if name not in past_features(config)}
    schema = rows.collect_schema()
    carried = [label(config, task, schema).alias(LABEL + task) for task in config.tasks]
    carried += [pl.col(name).alias(KEY + name) for name in _keys(config)]
    carried += [pl.col(name) for name in (TIME, ROW, SPLIT) if name in schema]
    encoded = encoder.select(now).encode(rows, carry=carried)
    writers = {split: PartWriter(folder / "splits" / split) for split in SPLITS}
    for chunk in encoded.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming"):
        times = chunk[TIME].to_numpy() if TIME in chunk.columns else np.empty(0)
        chunk = chunk.with_columns(past.take(chunk[ROW].to_numpy(), times)) if len(chunk) else chunk
        for code, split in enumerate(SPLITS):
            writers[split].write(chunk.filter(pl.col(SPLIT) == code).drop(SPLIT))
        progress(len(chunk))
    for writer in writers.values():
        writer.close()
    return {split: writer.rows for split, writer in writers.items()}


def _keys(config: DataConfig) -> list[str]:
    return list(dict.fromkeys(name for name in (*config.keys, config.user, config.time) if name is not None))


def _sizes(encoder: Encoder) -> dict[str, int]:
    return {table.name: table.rows for table in encoder.schema.tables}
