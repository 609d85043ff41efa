"""What a training has to know of all rows before its first step, so that it need not read them: ``summary.json``.

Letters: D numbers of a row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from data_pipelines.batch import Schema
from data_pipelines.dataset.columns import LABEL, WEIGHT, parts, scan_parts
from data_pipelines.disk.damage import intact

SUMMARY = "summary.json"


class TaskSummary(BaseModel):
    """The labels of a task in the train split.

    Attributes:
        labelled: Rows with a label.
        counting: Those of them whose weight is not 0.
        low, high: The lowest and highest label; ``None`` without labels.
        mean_weight: Of labelled rows; 1 without weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    labelled: int = Field(ge=0)
    counting: int = Field(ge=0)
    low: float | None
    high: float | None
    mean_weight: float


class NumberSummary(BaseModel):
    """``sign(x) log(1 + |x|)`` of a dense feature in the train split: its means and mean squares, one per column."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mean: list[float]
    square: list[float]


class Summary(BaseModel):
    """What is known of the splits of a data set.

    Attributes:
        parts: Rows of the files of each split, in order.
        tasks: By task.
        numbers: By dense feature of the schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    parts: dict[str, list[Annotated[int, Field(ge=0)]]]
    tasks: dict[str, TaskSummary]
    numbers: dict[str, NumberSummary]

    @staticmethod
    def of(folder: Path, schema: Schema, splits: Sequence[str]) -> "Summary":
        """Summarize the files of a data set.

        Args:
            folder: Of the data set.
            schema: Of its features.
            splits: The splits that it has.
        """
        rows = {split: [_rows(path) for path in parts(folder / "splits" / split)] for split in splits}
        train = scan_parts(folder / "splits" / "train")
        columns = train.collect_schema().names()
        tasks = {task: _labels(train, task, weighted=WEIGHT + task in columns) for task in schema.tasks}
        return Summary(parts=rows, tasks=tasks, numbers=_numbers(folder / "splits" / "train", schema))

    @staticmethod
    def read(path: Path, schema: Schema) -> "Summary":
        """Read the summary that ``prepare`` wrote.

        Raises:
            UserError: It is damaged, or of other tasks or features.
        """
        with intact(path):
            found = Summary.model_validate_json(path.read_bytes())
            widths = {name: (len(own.mean), len(own.square)) for name, own in found.numbers.items()}
            if widths != {feature.name: (feature.width, feature.width) for feature in schema.dense}:
                raise ValueError("it has other features than the data set")
            if found.tasks.keys() != set(schema.tasks):
                raise ValueError("it has other tasks than the data set")
        return found

    def moments(self, schema: Schema) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(D,) means and (D,) mean squares of the dense features of a schema."""
        found = [self.numbers[feature.name] for feature in schema.dense]
        return np.concatenate([own.mean for own in found]), np.concatenate([own.square for own in found])


def _rows(path: Path) -> int:
    with intact(path), pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))


def _labels(train: pl.LazyFrame, task: str, *, weighted: bool) -> TaskSummary:
    label = pl.col(LABEL + task)
    weight = pl.col(WEIGHT + task) if weighted else pl.lit(1.0)
    found = train.filter(label.is_not_null() & label.is_not_nan()).select(label=label, weight=weight).collect()
    labels, weights = found["label"], found["weight"].to_numpy().astype(np.float64)
    return TaskSummary(
        labelled=len(found),
        counting=int((weights > 0).sum()),
        low=None if found.is_empty() else float(labels.to_numpy().min()),
        high=None if found.is_empty() else float(labels.to_numpy().max()),
        mean_weight=float(weights.mean()) if weighted and len(found) else 1.0,
    )


def _numbers(folder: Path, schema: Schema) -> dict[str, NumberSummary]:
    """Summed record batch by record batch, in order: equal files have equal summaries."""
    rows, totals = 0, {feature.name: np.zeros((2, feature.width)) for feature in schema.dense}
    for path in parts(folder) if totals else ():
        with intact(path), pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)):
                rows += batch.num_rows
                for feature in schema.dense:
                    column = batch.column(feature.name)
                    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
                    values = flat.to_numpy(zero_copy_only=False).reshape(-1, feature.width)
                    small = (np.sign(values) * np.log1p(np.abs(values))).astype(np.float64)
                    totals[feature.name] += small.sum(axis=0), np.square(small).sum(axis=0)
    means = {name: total / max(rows, 1) for name, total in totals.items()}
    return {name: NumberSummary(mean=list(mean), square=list(square)) for name, (mean, square) in means.items()}
