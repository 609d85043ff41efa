"""The sections of a report on how runs were trained: losses, metrics of the valid split, what `serve` fixes."""

from collections.abc import Iterator, Sequence

import polars as pl

from recsys.metrics.binary import AUC, LOG_LOSS
from recsys.plots import runs as plots
from recsys.plots.style import svg
from recsys.reports.pages import Section
from recsys.reports.run_files import RunFiles

_SMOOTHING = 0.9


def learning(runs: Sequence[RunFiles]) -> Section:
    figures = []
    several = len(runs) > 1
    losses = []
    for run in runs:
        x, y = run.curve("train", "loss")
        if len(x) > 30 and not several:
            losses.append(plots.Curve("as measured", x, y, faint=True))
        losses.append(plots.Curve(run.path.name if several else "smoothed", x, _smooth(y)))
    if any(len(line.x) > 1 for line in losses):
        figures.append((svg(plots.curves("Training loss", "step", losses), "Training loss by step"), ""))
    for metric in (AUC, LOG_LOSS):
        title, lines = f"Validation {metric.label}", []
        for run in runs:
            for task in run.tasks:
                x, y = run.curve("valid", f"{task}/{metric.name}")
                name = run.path.name if several else task
                lines.append(
                    plots.Curve(name if len(run.tasks) == 1 or not several else f"{name}, {task}", x, y, marks=True)
                )
        if any(line.x for line in lines):
            figures.append((svg(plots.curves(title, "step", lines), f"{title} by step"), ""))
    return Section("How it learned", figures=figures)


def served_constants(run: RunFiles) -> Iterator[Section]:
    """The curve of each feature that is fixed when serving, such as the position in a list."""
    if run.added is None:
        return
    figures = []
    for (feature,), part in run.added.group_by("feature", maintain_order=True):
        number = pl.col("value").cast(pl.Float64, strict=False)
        numeric = part.select(number.is_not_null().all()).item()
        ordered = part.with_columns(number.alias("x")).sort("x") if numeric else part.with_columns(x=pl.lit(None))
        lines = [
            line
            for (task,), one in ordered.group_by("task", maintain_order=True)
            for line in _added_curves(str(task), one if numeric else one.with_columns(x=pl.int_range(1, pl.len() + 1)))
        ]
        label = str(feature) if numeric else f"{feature}, most frequent first"
        title = f"Logit added by {feature}"
        said = (
            "Compared with the value that scoring uses. The band is the 95% interval of what the rows evaluated last "
        )
        said += "show beside the rest of the model."
        figures.append((svg(plots.curves(title, label, lines), title), said))
    yield Section("Fixed when serving", figures=figures)


def _added_curves(task: str, values: pl.DataFrame) -> Iterator[plots.Curve]:
    """What a task has learned, and what the evaluated rows show where they show enough."""
    yield plots.Curve(task, values["x"].to_list(), values["logit"].to_list(), marks=True)
    told = values.drop_nulls("low") if "low" in values.columns else values.clear()
    if len(told) > 1:
        x, y, low, high = (told[name].to_list() for name in ("x", "measured", "low", "high"))
        yield plots.Curve(f"{task}, measured", x, y, low=low, high=high)


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, free of the bias towards its start."""
    kept, total, smooth = 0.0, 0.0, []
    for value in values:
        kept, total = _SMOOTHING * kept + value, _SMOOTHING * total + 1
        smooth.append(kept / total)
    return smooth
