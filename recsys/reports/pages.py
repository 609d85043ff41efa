"""HTML pages that open without a network: one file, styles and figures inside, light or dark as the reader's screen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from data_pipelines.disk.storage import write_file
from recsys import __version__
from recsys.metrics.bootstrap import Interval
from recsys.plots import style

NONE = "\N{EN DASH}"
"""What tables show where there is no value."""


class Tile(NamedTuple):
    """A number that a page shows large, with its label and note."""

    name: str
    value: str
    more: str = ""


class Line(NamedTuple):
    """A row of a table; ``style`` is ``strong``, ``total`` or nothing."""

    cells: Sequence[str | Markup]
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; ``texts`` are the positions of columns that hold words rather than numbers."""

    columns: Sequence[str]
    rows: Sequence[Line]
    texts: Iterable[int] = (0,)


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        figures: Drawings with their captions; ``wide`` ones take the whole width.
        folded: Tables that open on demand, by title; ``listings`` are texts of that kind.
    """

    title: str
    text: str = ""
    grids: Sequence[Grid] = ()
    figures: Sequence[tuple[Markup, str]] = ()
    wide: Sequence[tuple[Markup, str]] = ()
    folded: Sequence[tuple[str, Grid]] = ()
    listings: Sequence[tuple[str, str]] = ()

    def __bool__(self) -> bool:
        return bool(self.grids or self.figures or self.wide or self.folded or self.listings)


def write_page(
    path: Path,
    *,
    title: str,
    kind: str,
    lead: str,
    alerts: Iterable[str],
    tiles: Iterable[Tile],
    sections: Iterable[Section],
) -> None:
    """Write a report as one HTML file; sections without content are left out."""
    environment = Environment(
        loader=PackageLoader("recsys.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title,
        kind=kind,
        lead=lead,
        light=style.css_variables("light"),
        dark=style.css_variables("dark"),
        footer=f"Written by recsys {__version__}. This page is one file and needs no network.",
        alerts=list(alerts),
        tiles=list(tiles),
        sections=[section for section in sections if section],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)


def figure_of(value: float | None, digits: int = 4) -> str:
    """A number as tables show it; a dash where there is none."""
    return NONE if value is None or value != value else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """A difference, with its sign."""
    return NONE if value is None or value != value else style.signed(value, digits)


def with_interval(value: float, interval: Interval, digits: int = 4) -> Markup:
    """A number and, small beside it, its interval."""
    if interval.low != interval.low:
        return escape(figure_of(value, digits))
    reach = f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
    return Markup("{} <small>{}</small>").format(figure_of(value, digits), reach)


def signed_with_interval(value: float, interval: Interval) -> Markup:
    """A difference with its sign and, small beside it, its interval."""
    return Markup("{} <small>{} to {}</small>").format(signed(value), *(signed(bound) for bound in interval))


def byte_size(count: float | None) -> str:
    """Bytes in a readable unit."""
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit."""
    if seconds is None or seconds != seconds:
        return NONE
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
