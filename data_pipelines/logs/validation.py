"""Which rows are fit to be learnt from: labels, and the reasons why rows are refused.

A row is refused for what makes it meaningless (no readable time, a label out of range), never for an unseen value.
"""

from collections.abc import Iterator

import polars as pl

from data_pipelines.features.compiling import Values
from data_pipelines.features.config import BagFeature, DataConfig, NumberFeature, Task, VectorFeature
from data_pipelines.features.values import MISSING, condition
from data_pipelines.names import REASON, TIME


def label(config: DataConfig, name: str, schema: pl.Schema) -> pl.Expr:
    """Float32 labels of a task; null where a row has none.

    Raises:
        UserError: The task's column is missing or holds no numbers, or its ``where`` is no SQL condition.
    """
    task = config.tasks[name]
    value = Values(config, schema).label(name, task)
    if task.where is not None:
        value = pl.when(condition(f"task {name!r}", task.where)).then(value)
    return value.cast(pl.Float32)


def checked(config: DataConfig, rows: pl.LazyFrame, *, labelled: bool = True) -> pl.LazyFrame:
    """``rows`` with ``__time`` (when there is a time) and ``__reason``.

    Args:
        labelled: Whether the rows must have labels and a time: those to learn from do, those to score do not.

    Raises:
        UserError: A column is missing or of a type that cannot be read.
    """
    schema = rows.collect_schema()
    refused = [pl.when(bad).then(pl.lit(reason)) for reason, bad in _faults(config, schema, labelled)]
    added = [pl.coalesce(*refused, pl.lit(None, dtype=pl.String)).alias(REASON)]
    if config.time is not None and (labelled or config.time in schema):
        added.append(Values(config, schema).epoch("`time`", config.time).alias(TIME))
    return rows.with_columns(added)


def _faults(config: DataConfig, schema: pl.Schema, labelled: bool) -> Iterator[tuple[str, pl.Expr]]:
    """Reasons, and where each holds (true; null counts as false)."""
    values = Values(config, schema)
    if config.time is not None and (labelled or config.time in schema):
        when = values.epoch("`time`", config.time)
        yield f"{config.time}: no time that can be read", when.is_null()
    if labelled:
        for name, task in config.tasks.items():
            yield from _label_faults(values, name, task)
        yield "no label", pl.all_horizontal(label(config, name, schema).is_null() for name in config.tasks)
    for name, feature in config.features.items():
        match feature:
            case NumberFeature():
                read = values.number(f"feature {name!r}", feature.column)
                if schema[feature.column] == pl.String:
                    given = pl.col(feature.column).str.strip_chars()
                    missing = given.str.to_lowercase().is_in(MISSING)
                    yield f"{feature.column}: no number", given.is_not_null() & ~missing & read.is_null()
            case BagFeature(weights=str()):
                yield from _weight_faults(values, name, feature)
            case VectorFeature():
                dtype = values.column(f"feature {name!r}", feature.column)[1]
                if isinstance(dtype, pl.List):
                    numbers = pl.col(feature.column).list
                    finite = numbers.eval(pl.element().cast(pl.Float32, strict=False).is_finite().fill_null(False))
                    wrong = (numbers.len() != feature.width) | ~finite.list.all()
                    yield f"{feature.column}: not {feature.width} finite numbers", wrong


def _label_faults(values: Values, name: str, task: Task) -> Iterator[tuple[str, pl.Expr]]:
    if task.positive:
        return
    read = values.number(f"task {name!r}", task.column)
    if values.schema[task.column] == pl.String:
        reason = f"{task.column}: no number (name the values that count with `positive`)"
        yield reason, pl.col(task.column).is_not_null() & read.is_null()
    if task.kind == "binary" and task.at_least is None:
        yield (
            f"{task.column}: a label that is not 0 or 1 (make it so by `at_least` or `positive`)",
            ~read.is_in([0.0, 1.0]),
        )
    elif task.kind == "count":
        yield f"{task.column}: a count below 0", read < 0


def _weight_faults(values: Values, name: str, feature: BagFeature) -> Iterator[tuple[str, pl.Expr]]:
    assert feature.weights is not None
    weights = values.weights(name, feature)
    lengths = values.texts(name, feature).list.len()
    yield f"{feature.weights}: a negative weight", weights.list.min() < 0
    yield f"{feature.weights}: a weight that is no number", weights.list.eval(pl.element().is_null()).list.any()
    yield f"{feature.weights}: not as many weights as {feature.column} has values", weights.list.len() != lengths
