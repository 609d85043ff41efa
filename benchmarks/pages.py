"""What a benchmark printed, kept as a page of the docs: what was measured, on which machine, tables, and a plot."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from recsys.plots.studies import frontier
from recsys.plots.style import Draw, Palette, panel, png

_LARGEST_LOSS = -0.01
"""Of AUC, that a plot of curves shows."""

_SPREAD = re.compile(r"([\d,.]+) \(([\d,.]+) to ([\d,.]+)\)")


class Measured(NamedTuple):
    """A candidate's median, least and greatest value."""

    name: str
    median: float
    least: float
    greatest: float


def keep(name: str, about: str, output: str, folder: Path) -> Path:
    """Write ``NAME.md`` below ``folder``, and ``NAME.png`` of curves or of medians with their spread, if there are any.

    Args:
        about: The benchmark's docstring.
        output: What it printed; the last line is its JSON. ``curves`` in it, points by data set with ``ratio`` and
            ``auc_change``, are drawn, not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    *body, last = output.strip().splitlines()
    result = json.loads(last)
    page = [f"# {name.capitalize()}", "", _text(about), "", f"`make bench NAME={name}`", ""]
    for _, block in _blocks(body):
        page += [*block, ""]
    unit, measured = next(_spreads(body), ("", []))
    if curves := result.pop("curves", None):
        png(_curves(curves), folder / f"{name}.png")
        page += [f"![change of AUC over how many times smaller the model is, by data set]({name}.png)", ""]
    elif measured:
        png(_intervals(unit, measured), folder / f"{name}.png")
        page += [f"![{unit} of each candidate: median, least and greatest]({name}.png)", ""]
    path = folder / f"{name}.md"
    path.write_text("\n".join([*page, "```json", json.dumps(result, indent=2), "```", ""]))
    return path


def _blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Tables, and what stands between them."""
    for (is_table, empty), block in groupby(lines, key=lambda line: (line.startswith("|"), not line.strip())):
        if not empty:
            yield is_table, list(block)


def _text(about: str) -> str:
    """Paragraphs of a docstring, its literals as Markdown has them."""
    return about.strip().replace("``", "`")


def _spreads(lines: list[str]) -> Iterator[tuple[str, list[Measured]]]:
    """Of each Markdown table that has a column of medians with their spread: the column's name and its values."""
    for is_table, block in _blocks(lines):
        if not is_table:
            continue
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block)
        for column, title in enumerate(head):
            found = [(row[0], _SPREAD.fullmatch(row[column])) for row in rows]
            values = [Measured(name, *map(_number, match.groups())) for name, match in found if match]
            if values:
                yield title, values
                break


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Draw:
    """Every point, and by data set a line through those that no other one beats in both."""

    def draw(palette: Palette) -> Figure:
        figure, axes = panel(7.0, 3.8)
        axes.axhline(0, color=palette.muted, linewidth=1)
        for (name, points), colour in zip(curves.items(), palette.series, strict=False):
            ratio, change = ([point[key] for point in points] for key in ("ratio", "auc_change"))
            best = frontier([1 / r for r in ratio], change)
            axes.plot(ratio, change, "o", color=colour, markersize=4, alpha=0.35, markeredgewidth=0)
            axes.plot([ratio[i] for i in best], [change[i] for i in best], "o-", color=colour, markersize=5, label=name)
        axes.set(xscale="log", xlabel="times smaller", ylabel="change of test AUC", ylim=(_LARGEST_LOSS, 0.002))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.legend(loc="lower left", labelcolor=palette.ink, frameon=False)
        return figure

    return draw


def _intervals(unit: str, measured: list[Measured]) -> Draw:
    def draw(palette: Palette) -> Figure:
        figure, axes = panel(7.0, 0.6 + 0.3 * len(measured))
        for place, entry in enumerate(reversed(measured)):
            axes.plot([entry.least, entry.greatest], [place, place], color=palette.blue, alpha=0.35, linewidth=6)
            axes.plot(entry.median, place, "o", color=palette.blue, markersize=6)
        axes.set_yticks(range(len(measured)), [entry.name for entry in reversed(measured)])
        axes.tick_params(axis="y", labelcolor=palette.ink)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=unit, xlim=(0, None))
        return figure

    return draw
