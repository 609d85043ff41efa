"""Labels that may still change: ``data.tasks.<name>.label_window``.

A purchase may follow days after a click. At the end of a log, a 0 means "not yet" and a 1 is one of the quick ones, so
that neither says how often the task happens. Both are left out.
"""

import warnings

import polars as pl

from data_pipelines.errors import Notice
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import MICROSECONDS
from data_pipelines.logs.row_counts import Survey
from data_pipelines.logs.splits import SPLITS
from data_pipelines.names import SPLIT, TIME


def decided_labels(plan: Plan, raw: RawColumns, survey: Survey) -> dict[str, pl.Expr]:
    """Float32 labels by task; null also in rows that are younger than the task's window at the end of the log."""
    labels = {name: plan.label(name, raw) for name in plan.tasks}
    windows = plan.label_windows.items()
    return labels | {name: pl.when(~_is_young(window, survey)).then(labels[name]) for name, window in windows}


def warn_of_undecided(plan: Plan, rows: pl.LazyFrame, survey: Survey) -> dict[str, int]:
    """Rows of any split without a label because of their age, by task; said as a :class:`Notice`."""
    if not plan.label_windows:
        return {}
    raw = RawColumns(rows.collect_schema())
    sums = []
    for name, window in plan.label_windows.items():
        is_young, labelled = _is_young(window, survey), plan.label(name, raw).is_not_null()
        for code, split in enumerate(SPLITS):
            here = labelled & (pl.col(SPLIT) == code)
            sums += [here.sum().alias(f"{split}:{name}"), (here & is_young).sum().alias(f"young {split}:{name}")]
    found = rows.select(sums).collect(engine="streaming").row(0, named=True)
    counts = {name: sum(found[f"young {split}:{name}"] for split in SPLITS) for name in plan.label_windows}
    for name, count in counts.items():
        empty = [split for split in SPLITS if 0 < found[f"{split}:{name}"] == found[f"young {split}:{name}"]]
        none = f" No row of {' and '.join(empty)} has a label left: set earlier dates in data.split." if empty else ""
        warnings.warn(
            f"task {name!r}: {count:,} rows are younger than its label_window at the end of the log, so their labels "
            f"are not used; rows without any label are left out of their split.{none}",
            Notice,
            stacklevel=3,
        )
    return counts


def _is_young(window: float, survey: Survey) -> pl.Expr:
    assert survey.last is not None
    return pl.col(TIME) > survey.last - int(window * MICROSECONDS)
