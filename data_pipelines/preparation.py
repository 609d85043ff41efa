"""From a log to the files of a data set, in a few streaming passes whose memory does not grow with the log."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa

from data_pipelines import sources
from data_pipelines.columns import KEY, LABEL, PartWriter, to_arrow
from data_pipelines.encoder import Encoder
from data_pipelines.errors import UserError
from data_pipelines.features import DataConfig
from data_pipelines.sources import ROW
from data_pipelines.splits import SPLIT, SPLITS, Survey, assign
from data_pipelines.validation import REASON, TIME, checked, label

_CHUNK_ROWS = 1 << 17


def write(config: DataConfig, folder: Path, location: str, progress: Callable[[int], None]) -> dict[str, int]:
    """Write everything but the manifest into ``folder``; returns the rows of each split."""
    with sources.reading(location):
        rows = checked(config, sources.scan(config, location))
        survey, refused = _survey(config, rows, location)
        rows = assign(config, rows, survey)
        accepted = rows.filter(pl.col(REASON).is_null())
        encoder = Encoder.fit(config, accepted.filter(pl.col(SPLIT) == 0))
        splits = _encode(config, encoder, accepted, folder, progress)
        rows.filter(pl.col(REASON).is_not_null()).drop(SPLIT).sink_parquet(folder / "quarantine.parquet")
    if splits["train"] == 0:
        raise UserError(f"{location}: no row falls into the training split; look at the key `split`.")
    encoder.save(folder)
    profile = {"rows": survey.rows, "refused": refused, "splits": splits, "tables": _sizes(encoder)}
    (folder / "profile.json").write_text(json.dumps(profile, indent=1))
    return splits


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


def _encode(
    config: DataConfig, encoder: Encoder, rows: pl.LazyFrame, folder: Path, progress: Callable[[int], None]
) -> dict[str, int]:
    schema = rows.collect_schema()
    carried = [label(config, task, schema).alias(LABEL + task) for task in config.tasks]
    carried += [pl.col(name).alias(KEY + name) for name in _keys(config)]
    carried += [pl.col(name) for name in (TIME, ROW, SPLIT) if name in schema]
    encoded = encoder.encode(rows, carry=carried)
    arrow = _arrow_schema(encoded.drop(SPLIT))
    writers = {split: PartWriter(folder / "splits" / split, arrow) for split in SPLITS}
    for chunk in encoded.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True, engine="streaming"):
        for code, split in enumerate(SPLITS):
            writers[split].write(chunk.filter(pl.col(SPLIT) == code).drop(SPLIT))
        progress(len(chunk))
    for writer in writers.values():
        writer.close()
    return {split: writer.rows for split, writer in writers.items()}


def _arrow_schema(frame: pl.LazyFrame) -> pa.Schema:
    return to_arrow(frame.collect_schema().to_frame()).schema


def _keys(config: DataConfig) -> list[str]:
    return list(dict.fromkeys(name for name in (*config.keys, config.user, config.time) if name is not None))


def _sizes(encoder: Encoder) -> dict[str, int]:
    return {table.name: table.rows for table in encoder.schema.tables}
