"""Figures of ablation studies. Each function returns a :data:`~recsys.plots.style.Draw`.

Everywhere colour says the same: teal is better than the reference, rose is worse, grey is no effect or cannot tell.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from recsys.plots.style import MINUS, Draw, Palette, panel, signed

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
            axes.hlines(y, row.low, row.high, color=colour, linewidth=1.8)
            axes.plot(
                row.value,
                y,
                "o",
                markersize=4.5,
                markeredgewidth=1.2,
                markeredgecolor=colour,
                color=colour if known else palette.surface,
            )
            interval = f"{signed(row.low)} to {signed(row.high)}"
            for text, offset, shade in ((signed(row.value), 8, colour), (interval, 54, palette.muted)):
                axes.annotate(
                    text,
                    (1, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(offset, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color=shade,
                )
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
        axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, symmetric=False))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: "0" if abs(x) < 1e-12 else f"{x:+.4g}".replace("-", MINUS))
        )
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        return figure

    return draw


def cost_benefit(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Point],
    *,
    x_text: Callable[[float], str],
    less_is_better: bool = True,
    low_benefit: bool = False,
) -> Draw:
    """Benefit over cost, or over rate (``less_is_better=False``); the line joins the arms that none beats in both.

    With ``low_benefit`` the smaller benefit is the better one: an error, a loss.
    """

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(4.7, 3.6)
        sign = 1 if less_is_better else -1
        gain = -1 if low_benefit else 1
        front = frontier([sign * point.cost for point in points], [gain * point.benefit for point in points])
        end = max(sign * point.cost for point in points)
        axes.plot(
            [*(points[i].cost for i in front), sign * end],
            [*(points[i].benefit for i in front), points[front[-1]].benefit],
            color=palette.blue,
            alpha=0.45,
            linewidth=1.3,
            drawstyle="steps-post",
        )
        for index, point in enumerate(points):
            on_front = index in front
            colour = palette.orange if point.strong else palette.blue if on_front else palette.muted
            alpha = 1.0 if on_front or point.strong else 0.55
            axes.vlines(point.cost, point.low, point.high, color=colour, alpha=0.35 * alpha, linewidth=2.2)
            axes.plot(point.cost, point.benefit, "o", color=colour, markersize=5.5, alpha=alpha)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.16, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: x_text(x)))
        named = [*front, *(i for i, point in enumerate(points) if point.strong and i not in front)]
        _place_names(figure, axes, [points[i] for i in named], points, palette)
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
                axes.text(j, i, signed(1000 * value, 1), ha="center", va="center", fontsize=8, fontweight=weight)
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


def _place_names(figure: Figure, axes: Axes, named: Sequence[Point], points: Sequence[Point], palette: Palette) -> None:
    """Write each name next to its point, where it covers no other name and the fewest points."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    inside = axes.get_window_extent()
    dots = axes.transData.transform([(point.cost, point.benefit) for point in points]) / scale
    taken: list[Bbox] = []
    for point in named:
        x, y = axes.transData.transform((point.cost, point.benefit)) / scale
        width, height = 4.4 * len(point.name), 9.0
        boxes = {
            (dx, dy): Bbox.from_bounds(x + dx - width * (0.5 - 0.5 * np.sign(dx)), y + dy - height / 2, width, height)
            for dx, dy in (
                (0, 11),
                (0, -11),
                (8, 0),
                (-8, 0),
                (8, 11),
                (-8, 11),
                (8, -11),
                (-8, -11),
                (0, 22),
                (0, -22),
            )
        }

        def cost(box: Bbox) -> float:
            covered = sum(bool(box.contains(*dot)) for dot in dots) + 5 * sum(box.overlaps(other) for other in taken)
            outside = max(0.0, inside.x0 / scale - box.x0) + max(0.0, box.x1 - inside.x1 / scale)
            return float(covered + outside / 20)

        (dx, dy), box = min(boxes.items(), key=lambda entry: cost(entry[1]))
        taken.append(box)
        axes.annotate(
            point.name,
            (point.cost, point.benefit),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center" if dx == 0 else "left" if dx > 0 else "right",
            va="center",
            fontsize=8,
            color=palette.ink,
        )
