"""Figures of ablation studies. Each function returns a :data:`~recsys.plots.style.Draw`.

Everywhere colour says the same: teal is better than the reference, rose is worse, grey is no effect or cannot tell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from recsys.plots.style import Draw, Palette, panel

Floats = NDArray[np.floating]


class Row(NamedTuple):
    """One arm of a forest plot. ``verdict`` is ``better``, ``worse``, ``no effect`` or ``cannot tell``."""

    name: str
    value: float
    low: float
    high: float
    verdict: str


class Point(NamedTuple):
    """One arm in the plane of cost and benefit."""

    name: str
    cost: float
    benefit: float
    low: float
    high: float
    strong: bool = False


def verdict_colour(palette: Palette, verdict: str) -> str:
    return {"better": palette.teal, "worse": palette.rose}.get(verdict, palette.muted)


def forest(title: str, x_label: str, rows: Sequence[Row], *, tolerance: float = 0.0) -> Draw:
    """Effects with their intervals, in the order of ``rows`` from the top; the band is what is held to be nothing."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(7.4, 1.0 + 0.27 * len(rows))
        if tolerance:
            axes.axvspan(-tolerance, tolerance, color=palette.grid, alpha=0.55, linewidth=0)
        axes.axvline(0, color=palette.muted, linewidth=1)
        for y, row in enumerate(reversed(rows)):
            colour = verdict_colour(palette, row.verdict)
            known = row.verdict in ("better", "worse")
            axes.hlines(y, row.low, row.high, color=colour, linewidth=2.2 if known else 1.6, alpha=0.75)
            axes.plot(
                row.value,
                y,
                "o",
                markersize=6.5,
                markeredgewidth=1.6,
                markeredgecolor=colour,
                color=colour if known else "none",
            )
            axes.annotate(
                f"{row.value:+.4f}",
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=colour,
            )
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
        axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, symmetric=False))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if abs(x) < 1e-12 else f"{x:+.4g}"))
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        return figure

    return draw


def cost_benefit(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> Draw:
    """Benefit (more is better) over cost (less is better); the line joins the arms that no other arm beats in both."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(4.7, 3.5)
        front = frontier([point.cost for point in points], [point.benefit for point in points])
        costs = [points[i].cost for i in front]
        axes.plot(
            [*costs, max(point.cost for point in points)],
            [*(points[i].benefit for i in front), points[front[-1]].benefit],
            color=palette.blue,
            alpha=0.5,
            linewidth=1.3,
            drawstyle="steps-post",
        )
        for index, point in enumerate(points):
            on_front = index in front
            colour = palette.orange if point.strong else palette.blue if on_front else palette.muted
            alpha = 1.0 if on_front or point.strong else 0.5
            axes.vlines(point.cost, point.low, point.high, color=colour, alpha=0.3 * alpha, linewidth=2.2)
            axes.plot(point.cost, point.benefit, "o", color=colour, markersize=5.5, alpha=alpha)
        named = [points[i] for i in front] + [p for i, p in enumerate(points) if p.strong and i not in front]
        _name_points(axes, named, palette)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.14, y=0.12)
        return figure

    return draw


def frontier(cost: Sequence[float], benefit: Sequence[float]) -> list[int]:
    """Positions that no other position beats in both, by rising cost."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -benefit[i]))
    kept: list[int] = []
    for index in order:
        if not kept or benefit[index] > benefit[kept[-1]]:
            kept.append(index)
    return kept


def heat_map(title: str, names: Sequence[str], value_FF: Floats, *, known_FF: NDArray[np.bool_], note: str) -> Draw:
    """A symmetric matrix of signed effects: teal above zero, rose below, the deeper the larger.

    Cells whose sign is known (``known_FF``) have their number in bold; NaN cells stay empty.
    """

    def draw(palette: Palette) -> Figure:
        count = len(names)
        figure, axes = panel(1.9 + 0.58 * count, 1.3 + 0.44 * count)
        top = float(np.nanmax(np.abs(value_FF))) or 1.0
        for i in range(count):
            for j in range(i):
                value = float(value_FF[i, j])
                if not np.isfinite(value):
                    continue
                colour = palette.teal if value > 0 else palette.rose
                axes.add_patch(
                    Rectangle(
                        (j - 0.47, i - 0.47), 0.94, 0.94, color=colour, alpha=0.06 + 0.74 * abs(value) / top, lw=0
                    )
                )
                weight = "bold" if known_FF[i, j] else "normal"
                axes.text(j, i, f"{1000 * value:+.1f}", ha="center", va="center", fontsize=8, fontweight=weight)
        axes.set_title(title)
        axes.set_xlabel(note)
        axes.set_xlim(-0.5, count - 1.5)
        axes.set_ylim(count - 0.5, 0.5)
        axes.set_xticks(range(count - 1), names[:-1], rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(1, count), names[1:])
        axes.tick_params(length=0, labelcolor=palette.ink)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        return figure

    return draw


def _name_points(axes: object, points: Sequence[Point], palette: Palette) -> None:
    """Names beside points, alternately above and below, so that neighbours on the frontier do not collide."""
    for index, point in enumerate(sorted(points, key=lambda p: p.cost)):
        axes.annotate(  # type: ignore[attr-defined]
            point.name,
            (point.cost, point.benefit),
            xytext=(0, 9 if index % 2 == 0 else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if index % 2 == 0 else "top",
            fontsize=8,
            color=palette.ink,
        )
