"""The one look of every figure, and how a figure becomes inline SVG or a PNG.

A figure is drawn by a function of a :class:`Palette`. Inline SVG is drawn with the light palette, then every colour
becomes a CSS variable of the same role, so one drawing follows the page from light to dark. PNGs keep the palette.
"""

import io
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """Colours by role. Every light colour is unique, because the role of a colour in an SVG is found by its value."""

    surface: str
    ink: str
    muted: str
    grid: str
    blue: str
    orange: str
    teal: str
    purple: str
    rose: str
    gold: str

    @property
    def series(self) -> tuple[str, ...]:
        """Colours of categories, told apart also without red-green vision, in the order in which to use them."""
        return (self.blue, self.orange, self.teal, self.purple, self.rose, self.gold)


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        surface="#ffffff",
        ink="#22252b",
        muted="#6b707a",
        grid="#e4e6ea",
        blue="#2b63c9",
        orange="#cf6a12",
        teal="#0f8670",
        purple="#7d4bc0",
        rose="#c23a63",
        gold="#a07d0a",
    ),
    "dark": Palette(
        surface="#1a1d23",
        ink="#e7e9ed",
        muted="#9aa1ad",
        grid="#31363f",
        blue="#7aa7ff",
        orange="#f2a057",
        teal="#4cc9ac",
        purple="#bb95f5",
        rose="#f27c9b",
        gold="#d9b945",
    ),
}

Draw = Callable[[Palette], Figure]

MINUS = "\N{MINUS SIGN}"

_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_CLEAN: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"<style.*?</style>", re.DOTALL), ""),
    (re.compile(r'<g id="[^"]*">'), "<g>"),
    (re.compile(r"font-family: [^;\"]*"), "font-family: inherit"),
    (re.compile(r'(font: [^;"]*?px) [^;"]*'), r"\1 inherit"),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r' (d|x|y)="[^"]*"'), lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0])),
    (re.compile(r"\s*\n\s*"), " "),
)


def style(palette: Palette) -> Any:
    """Matplotlib settings that go with ``palette``."""
    return {
        "figure.facecolor": "none",
        "figure.constrained_layout.use": True,
        "axes.facecolor": "none",
        "axes.edgecolor": palette.grid,
        "axes.labelcolor": palette.muted,
        "axes.titlecolor": palette.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=palette.series),
        "grid.color": palette.grid,
        "grid.linewidth": 0.8,
        "xtick.color": palette.grid,
        "ytick.color": palette.grid,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "text.color": palette.ink,
        "font.size": 9,
        "font.family": "sans-serif",
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.labelcolor": palette.muted,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "recsys",
    }


def panel(width: float = 4.7, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure of ``width`` x ``height`` inches with one pair of axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def svg(draw: Draw, label: str) -> Markup:
    """Inline SVG that takes its colours from the page's CSS variables; ``label`` is what a screen reader says."""
    palette = PALETTES["light"]
    with mpl.rc_context(style(palette)):
        buffer = io.StringIO()
        draw(palette).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    width, height = (float(size) for size in _VIEW_BOX.search(text).groups())  # type: ignore[union-attr]
    body = (
        text[text.index("</metadata>") + len("</metadata>") :]
        if "</metadata>" in text
        else text[text.index(">", text.index("<svg")) + 1 :]
    )
    for pattern, replacement in _CLEAN:
        body = pattern.sub(replacement, body)
    for role, colour in asdict(palette).items():
        body = body.replace(colour, f"var(--{role})")
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 1.35:.0f}px"'
    return Markup(f'<svg {size} role="img" aria-label="{escape(label)}">{body}')


def png(draw: Draw, path: Path, theme: Theme = "light") -> None:
    """Write the figure as a PNG of 200 dots an inch, ready for a paper."""
    palette = PALETTES[theme]
    with mpl.rc_context(style(palette)):
        figure = draw(palette)
        figure.savefig(
            path, dpi=200, facecolor=palette.surface, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None}
        )


def css_variables(theme: Theme) -> Markup:
    """The palette of ``theme`` as CSS declarations."""
    return Markup(" ".join(f"--{role}: {colour};" for role, colour in asdict(PALETTES[theme]).items()))


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, a true minus where it is one."""
    return f"{value:+.{digits}f}".replace("-", MINUS)
