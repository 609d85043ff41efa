"""The labels of tasks: how they are read, and which rows have one that cannot be learned from."""

from collections.abc import Iterator, Sequence

import polars as pl

from data_pipelines.config.learning import Task
from data_pipelines.features.conditions import condition
from data_pipelines.features.raw_columns import SINGLE, RawColumns, wrong_type
from data_pipelines.features.values import label_value, unread


def label(name: str, task: Task, raw: RawColumns) -> pl.Expr:
    """Float32 labels of a task; null where a row has none.

    Raises:
        UserError: The task's column is missing or holds no numbers, or its ``where`` is not a SQL condition.
    """
    expression, dtype = raw.column(f"task {name!r}", task.column)
    try:
        value = label_value(expression, dtype, at_least=task.at_least, positive=task.positive)
    except TypeError:
        wanted = SINGLE if task.positive else "numbers"
        raise wrong_type(f"task {name!r}", task.column, dtype, wanted) from None
    if task.levels:
        value = _level(value, task.levels)
    if task.where is not None:
        value = pl.when(condition(f"task {name!r}", task.where, raw.schema)).then(value)
    return value.cast(pl.Float32)


def label_checks(name: str, task: Task, raw: RawColumns) -> Iterator[tuple[str, pl.Expr]]:
    """Reasons to refuse a row because of its label, and where each holds (null counts as false)."""
    if task.positive:
        return
    read = raw.number(f"task {name!r}", task.column)
    if raw.schema[task.column] == pl.String:
        hint = " (name the values that count with `positive`)" if task.kind == "binary" else ""
        reason = f"{task.column}: no number{hint}"
        yield reason, unread(pl.col(task.column), read)
    if task.kind == "binary" and task.at_least is None:
        yield (
            f"{task.column}: a label that is not 0 or 1 (make it so by `at_least` or `positive`)",
            ~read.is_in([0.0, 1.0]),
        )
    elif task.kind in ("count", "duration"):
        yield f"{task.column}: a {task.kind} below 0", read < 0
    elif task.levels:
        lowest = f"{task.column}: below {task.levels[0]:g}, the first of the levels of task {name!r}"
        yield lowest, read.is_not_null() & _level(read, task.levels).is_null()


def _level(value: pl.Expr, levels: Sequence[float]) -> pl.Expr:
    """The highest level that is not above a value, both in float32; null below the first."""
    value, found = value.cast(pl.Float32), pl.lit(None, pl.Float32)
    for level in levels:
        step = pl.lit(level, pl.Float32)
        found = pl.when(value >= step).then(step).otherwise(found)
    return found
