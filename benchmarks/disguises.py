"""The same log in twenty disguises: which give the same data set, which are refused, which are silently wrong.

Ten logs of real shapes (`disguised_logs.py`) are written in twenty ways: formats, compression, types, spellings, order
of columns, several files, time formats, time zones, encodings. For each, `prepare` makes a data set with the keys
that a user would set (a time format, a delimiter, an encoding), which is compared with that of the plain log: encoded
rows, labels, splits and vocabularies. Then the rows are read as a scoring job reads them, and encoded with the encoder
of the plain log. *Refused* counts errors that name what to set; *wrong* counts everything else that differs.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl

from benchmarks.common import machine, table
from benchmarks.disguised_logs import DISGUISES, Log, Write, logs
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from serving.batch.inputs import Input

Outcome = Literal["same", "refused", "wrong"]


def content(dataset: Dataset) -> dict[str, Any]:
    """What two data sets of the same log have in common."""
    encoded = pl.selectors.exclude(pl.selectors.starts_with("key:"))  # which are held as they are
    frames = {split: dataset.frame(split).select(encoded).collect() for split in ("train", "valid", "test")}
    labels = {split: dataset.labels(split).tolist() for split in frames}
    tables = {name: dataset.encoder.vocabulary(name).to_dict(as_series=False) for name in dataset.encoder.tables}
    return {"frames": frames, "labels": labels, "tables": tables}


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two contents are equal, value by value."""
    frames = all(frame.equals(other["frames"][split]) for split, frame in one["frames"].items())
    return frames and one["labels"] == other["labels"] and one["tables"] == other["tables"]


def encoded(dataset: Dataset, location: Path, keys: Mapping[str, Any]) -> pl.DataFrame:
    """The rows at ``location`` as a scoring job with the encoder of ``dataset`` reads and encodes them."""
    block = {**dataset.config.model_dump(mode="json", exclude_none=True), **keys}
    plan = Plan.of(DataConfig.model_validate(block))
    rows = Input.find(str(location), plan).scan(plan)
    return dataset.encoder.encode(rows).collect()


def outcome(log: Log, write: Write, plain: Dataset, folder: Path) -> tuple[Outcome, str]:
    """What becomes of one disguise, and the error if there is one."""
    try:
        location, keys = write(log.rows, folder)
        config = DataConfig.model_validate({**log.data, "log": str(location), **keys})
        same = alike(content(prepare(config, folder / "dataset")), content(plain))
        if "time_format" not in keys:
            rows = Path(plain.config.log)
            same = same and encoded(plain, location, keys).equals(encoded(plain, rows, {}))
        return ("same" if same else "wrong"), ""
    except UserError as error:
        return "refused", str(error)


def main() -> None:
    """Write every disguise of every log, and count what becomes of them."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in DISGUISES}
    with tempfile.TemporaryDirectory() as scratch:
        for name, log in logs().items():
            folder = Path(scratch, name)
            folder.mkdir()
            log.rows.write_parquet(folder / "plain.parquet")
            plain = prepare(DataConfig.model_validate({**log.data, "log": str(folder / "plain.parquet")}), folder / "d")
            for number, (disguise, write) in enumerate(DISGUISES.items()):
                place = folder / str(number)
                place.mkdir()
                found, error = outcome(log, write, plain, place)
                counts[disguise][found] += 1
                if found != "same":
                    print(f"{name}, {disguise}: {found} {error}", file=sys.stderr)
    total = sum((counter for counter in counts.values()), Counter())
    kinds = ("same", "refused", "wrong")
    print(f"{machine()}\n\n{len(logs(10))} logs, {len(DISGUISES)} disguises of each\n")
    print(table(["disguise", *kinds], [[name, *(str(c[kind]) for kind in kinds)] for name, c in counts.items()]))
    print(json.dumps({kind: total[kind] / total.total() for kind in kinds}))


if __name__ == "__main__":
    main()
