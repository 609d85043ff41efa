"""Figures about training runs. Each function returns a :data:`~recsys.plots.style.Draw`, to be rendered as SVG or PNG.

Letters: N rows, K bins, T epochs (or any points in time), E experts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from recsys.metrics.binary import Reliability
from recsys.plots.style import Draw, Palette, panel

Floats = NDArray[np.floating]


class Curve(NamedTuple):
    """A named line; ``marks`` draws its points as well, ``faint`` puts it in the background.

    ``low`` and ``high`` are the limits of an interval for each point, drawn as a band.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False
    faint: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Mark(NamedTuple):
    """A named value on a scale, with an interval where one is known (NaN otherwise)."""

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    strong: bool = False


def curves(title: str, x_label: str, lines: Sequence[Curve], *, whole_x: bool = False) -> Draw:
    """Lines over training steps or epochs. ``whole_x`` keeps the ticks of x on whole numbers."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel()
        colours = iter(palette.series)
        for line in lines:
            colour = palette.muted if line.faint else next(colours)
            axes.plot(
                line.x,
                line.y,
                color=colour,
                label=line.name,
                alpha=0.45 if line.faint else 1,
                linewidth=1 if line.faint else 1.8,
                marker="o" if line.marks else None,
                markersize=4.5,
            )
            if len(line.low):
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel=x_label)
        axes.margins(x=0.03)
        if whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axes.legend(loc="best", handlelength=1.4)
        return figure

    return draw


def reliability(title: str, points: Mapping[str, Reliability]) -> Draw:
    """Observed rate against predicted probability in bins of equal mass; calibrated models lie on the diagonal."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel()
        top = max(float(max(p.predicted_K.max(), p.observed_K.max())) for p in points.values()) * 1.05
        axes.plot([0, top], [0, top], color=palette.muted, linewidth=1, linestyle=(0, (4, 3)))
        for colour, (name, p) in zip(palette.series, points.items(), strict=False):
            error_K = 1.96 * np.sqrt(p.observed_K * (1 - p.observed_K) / np.maximum(p.weight_K, 1))
            axes.vlines(
                p.predicted_K, p.observed_K - error_K, p.observed_K + error_K, color=colour, alpha=0.35, linewidth=2
            )
            axes.plot(p.predicted_K, p.observed_K, "o-", color=colour, markersize=4, linewidth=1.2, label=name)
        axes.set(title=title, xlabel="predicted probability", ylabel="observed rate", xlim=(0, top), ylim=(0, top))
        if len(points) > 1:
            axes.legend(loc="upper left")
        return figure

    return draw


def score_histogram(title: str, labels_N: Floats, probabilities_N: Floats) -> Draw:
    """Densities of the predicted probability of positives and of negatives."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel()
        edges = np.linspace(float(probabilities_N.min()), float(probabilities_N.max()), 41)
        for name, mask_N, colour in (
            ("negative", labels_N < 0.5, palette.orange),
            ("positive", labels_N >= 0.5, palette.blue),
        ):
            if mask_N.any():
                height, _ = np.histogram(probabilities_N[mask_N], edges, density=True)
                axes.stairs(height, edges, fill=True, color=colour, alpha=0.22)
                axes.stairs(height, edges, color=colour, linewidth=1.5, label=name)
        axes.set(title=title, xlabel="predicted probability", ylabel="density")
        axes.set_ylim(bottom=0)
        axes.grid(False, axis="x")
        axes.legend(loc="best", handlelength=1.2)
        return figure

    return draw


def expert_load(title: str, load_TE: Floats, *, x_label: str = "epoch") -> Draw:
    """Share of the routed rows that each expert got, one column an epoch; the deeper, the busier."""

    def draw(palette: Palette) -> Figure:
        times, experts = load_TE.shape
        figure, axes = panel(4.7, min(1.4 + 0.24 * experts, 6.0))
        top = max(float(load_TE.max()), 2 / experts)
        for time in range(times):
            for expert in range(experts):
                share = float(load_TE[time, expert])
                axes.add_patch(
                    Rectangle(
                        (time + 0.53, expert - 0.47),
                        0.94,
                        0.94,
                        color=palette.blue,
                        alpha=0.04 + 0.86 * share / top,
                        linewidth=0,
                    )
                )
                if times <= 8 and experts <= 24:
                    axes.text(time + 1, expert, f"{100 * share:.0f}%", ha="center", va="center", fontsize=8)
        axes.set(title=title, xlabel=x_label, ylabel="expert", xlim=(0.5, times + 0.5), ylim=(experts - 0.5, -0.5))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(times, 10), min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(experts, 12), min_n_ticks=1))
        return figure

    return draw


def scale(title: str, x_label: str, marks: Sequence[Mark], *, ceiling: tuple[str, float] | None = None) -> Draw:
    """Values of several models on one scale, best on top, with their intervals; ``ceiling`` is a named upper bound."""

    def draw(palette: Palette) -> Figure:
        ordered = sorted(marks, key=lambda mark: mark.value)
        figure, axes = panel(4.7, 1.1 + 0.36 * len(ordered) + (0.15 if ceiling else 0))
        for row, mark in enumerate(ordered):
            colour = palette.blue if mark.strong else palette.muted
            if np.isfinite(mark.low):
                axes.hlines(row, mark.low, mark.high, color=colour, alpha=0.4, linewidth=4)
            axes.plot(mark.value, row, "o", color=colour, markersize=7)
            axes.annotate(
                f"{mark.value:.4f}",
                (mark.value, row),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
            )
        if ceiling:
            axes.axvline(ceiling[1], color=palette.teal, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                ceiling[0],
                (ceiling[1], -0.62),
                xytext=(-5, 0),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=palette.teal,
                fontsize=8.5,
            )
        axes.set(title=title, xlabel=x_label, ylim=(-0.65, len(ordered) - 0.3))
        axes.set_yticks(range(len(ordered)), [mark.name for mark in ordered], color=palette.ink)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        return figure

    return draw
