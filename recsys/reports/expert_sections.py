"""The section of a report on the experts of a mixture: their load, what they serve, and where they beat the others.

Letters: T epochs, E experts.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from markupsafe import Markup

from recsys.metrics.bootstrap import Interval
from recsys.metrics.registry import get_metric
from recsys.plots import runs as plots
from recsys.plots.studies import Row, forest
from recsys.plots.style import svg
from recsys.reports.pages import NONE, Grid, Line, Section, figure_of, signed_with_interval
from recsys.reports.run_files import RunFiles

_NAMED_BY = 3
_MOST_DRAWN = 32


def expert_loads(run: RunFiles) -> dict[str, np.ndarray]:
    """(T, E) share of the routed rows by router, one row an epoch."""
    frame = run.history.filter(pl.col("metric").str.contains(r"^experts/.+/\d+$")).with_columns(
        router=pl.col("metric").str.extract(r"^experts/(.+)/\d+$"),
        expert=pl.col("metric").str.extract(r"/(\d+)$").cast(pl.Int32),
    )
    loads = {}
    for (router,), part in frame.group_by("router", maintain_order=True):
        wide = part.pivot(on="expert", index="step", values="value", aggregate_function="last").sort("step")
        experts = sorted((name for name in wide.columns if name != "step"), key=int)
        load_TE = wide.select(experts).to_numpy()
        loads[str(router)] = load_TE / load_TE.sum(axis=1, keepdims=True)
    return loads


def experts(run: RunFiles) -> Iterator[Section]:
    figures, wide, lines = [], [], []
    for router, load_TE in expert_loads(run).items():
        title = f"Load of {router}" if router else "Load of the experts"
        figures.append(
            (
                svg(plots.expert_load(title, load_TE), title),
                f"Share of routed rows by epoch; a fair share is {100 / load_TE.shape[1]:.0f}%.",
            )
        )
        last = load_TE[-1]
        entropy = float(-(last * np.log(np.maximum(last, 1e-12))).sum() / np.log(max(len(last), 2)))
        lines.append(Line([router, str(len(last)), f"{entropy:.3f}", f"{last.min():.1%}", f"{last.max():.1%}"]))
    if not figures:
        return
    grids = [Grid(["Router", "Experts", "Entropy of load (1 is even)", "Least used", "Most used"], lines)]
    title = "All values that experts serve more often than chance"
    folded = [] if run.experts is None else [(title, _all(run.experts))]
    text = "How the router spreads rows."
    if run.expert_gains is not None and len(run.expert_gains):
        names = expert_names(run.experts)
        grids += [_gains(part, names) for part in run.expert_gains.partition_by("task", maintain_order=True)]
        wide = list(_forests(run.expert_gains))
        text += (
            " Each expert is named by the values that are over-represented among its rows. Its rows are scored twice: "
            "as they are routed, and by the next best choice, which is what the router does if it may not choose this "
            "expert. Where that is no worse, the expert is not needed. Intervals are 95%, over users; one expert in "
            "twenty seems needed or harmful by chance."
        )
    yield Section("Experts", text, grids, figures, wide, folded=folded)


def expert_names(served: pl.DataFrame | None) -> dict[tuple[str, int], str]:
    """By router and expert: up to three features whose values are most over-represented among its rows."""
    if served is None:
        return {}
    best = served.unique(["router", "expert", "feature"], keep="first", maintain_order=True)
    return {
        (part["router"][0], part["expert"][0]): "; ".join(
            f"{row['feature']} = {row['value']} ({row['lift']:.1f} times chance)"
            for row in part.head(_NAMED_BY).iter_rows(named=True)
        )
        for part in best.partition_by("router", "expert", maintain_order=True)
    }


def _gains(gains: pl.DataFrame, names: dict[tuple[str, int], str]) -> Grid:
    """The gains of one task."""
    metrics = gains["metric"].unique(maintain_order=True).to_list()
    lines = []
    for part in gains.partition_by("router", "expert", maintain_order=True):
        by_metric = {row["metric"]: row for row in part.iter_rows(named=True)}
        router, expert = part["router"][0], part["expert"][0]
        cells: list[str | Markup] = [
            f"{expert} of {router}",
            names.get((router, expert), "no value more often than chance"),
            f"{part['share'][0]:.1%}",
        ]
        for metric in metrics:
            row = by_metric.get(metric)
            if row is None:
                cells += [NONE] * 3
            else:
                gain = signed_with_interval(row["gain"], Interval(row["low"], row["high"]))
                cells += [figure_of(row["own"]), figure_of(row["next_best"]), gain]
        lines.append(Line(cells))
    columns = [f"{gains['task'][0]}: expert", "Serves", "Rows"]
    for metric in metrics:
        label = get_metric(metric).label
        columns += [label, "next best", "gain"]
    return Grid(columns, lines, texts=(0, 1))


def _forests(gains: pl.DataFrame) -> Iterator[tuple[Markup, str]]:
    """The gains in the last metric of each task, the busiest experts of each router."""
    for (task,), part in gains.group_by("task", maintain_order=True):
        metric = part["metric"][-1]
        shown = (
            part.filter(metric=metric).sort("share", descending=True).head(_MOST_DRAWN).sort("gain", descending=True)
        )
        single = shown["router"].n_unique() == 1
        rows = [
            Row(
                f"expert {row['expert']}" if single else f"expert {row['expert']} of {row['router']}",
                row["gain"],
                row["low"],
                row["high"],
                "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "cannot tell",
            )
            for row in shown.iter_rows(named=True)
        ]
        label = get_metric(metric).label
        title = f"{task}: what each expert is worth to its rows"
        yield (
            svg(forest(title, f"{label}: better than the next best choice by", rows), title),
            f"Right of zero, the expert's rows have a better {label} than by the next best choice.",
        )


def _all(served: pl.DataFrame) -> Grid:
    """The values that each expert serves more often than chance, five per expert."""
    lines = []
    for row in served.group_by("router", "expert", maintain_order=True).head(5).iter_rows(named=True):
        value = f"{row['feature']} = {row['value']}"
        lines.append(Line([row["router"], str(row["expert"]), value, f"{row['share']:.1%}", f"{row['lift']:.2f}"]))
    return Grid(["Router", "Expert", "Value", "Rows it serves", "Times chance"], lines, texts=(0, 2))
