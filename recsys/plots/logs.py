"""Figures about raw logs. Each function returns a :data:`~recsys.plots.style.Draw`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from data_pipelines.profile.columns import Histogram
from recsys.plots.style import Draw, Palette, panel


def over_time(
    title: str, days: Sequence[str], rows: Sequence[float], means: Sequence[float], *, binary: bool = True
) -> Draw:
    """Rows per day as an area and, on a scale of its own, the mean label as a line: a rate if labels are binary."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(9.6, 2.8)
        dates = np.array(days, dtype="datetime64[D]")
        axes.fill_between(dates, rows, color=palette.blue, alpha=0.22, linewidth=0)
        axes.plot(dates, rows, color=palette.blue, linewidth=1.3)
        axes.set(title=title, ylabel="rows a day")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))  # type: ignore[no-untyped-call]
        if np.isfinite(means).any():
            right = axes.twinx()
            right.plot(dates, means, color=palette.orange, linewidth=1.3)
            right.set_ylabel("label rate" if binary else "mean label", color=palette.orange)
            if binary:
                right.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            right.set_ylim(bottom=0)
            right.grid(False)
            right.margins(x=0)
        return figure

    return draw


def frequencies(title: str, curves: Mapping[str, Sequence[tuple[int, int]]]) -> Draw:
    """How often the value of each rank occurs, both on logarithmic scales: a straight line is Zipf's law."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(4.7, 3.4)
        for colour, (name, points) in zip(palette.series, curves.items(), strict=False):
            ranks, counts = zip(*points, strict=True)
            axes.loglog(ranks, counts, color=colour, label=name, linewidth=1.6)
        axes.set(title=title, xlabel="rank of the value", ylabel="rows that have it")
        axes.legend(loc="best", handlelength=1.4)
        return figure

    return draw


def histogram(title: str, shape: Histogram, x_label: str) -> Draw:
    """Rows of a sample by value."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(3.4, 2.3)
        axes.stairs(shape.counts, shape.edges, fill=True, color=palette.blue, alpha=0.3)
        axes.stairs(shape.counts, shape.edges, color=palette.blue, linewidth=1.3)
        axes.set(title=title, xlabel=x_label)
        axes.set_ylim(bottom=0)
        axes.grid(False, axis="x")
        axes.yaxis.set_ticks([])
        return figure

    return draw
