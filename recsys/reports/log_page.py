"""What ``recsys inspect`` found in a log, as one HTML page."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from markupsafe import Markup

from data_pipelines.profile.columns import Column
from data_pipelines.profile.inspection import LogProfile
from data_pipelines.profile.wording import percent, shown
from recsys.plots import logs as plots
from recsys.plots.style import svg
from recsys.reports.pages import NONE, Grid, Line, Section, Tile, write_page

_CURVES = 6
_HISTOGRAMS = 24
_POINTS = 90
_ENOUGH_ROWS = 100


def write_log_page(profile: LogProfile, out: Path) -> Path:
    """Write the page of ``profile`` to ``out``."""
    write_page(
        out,
        title=Path(profile.location).name,
        kind="A look at a log",
        lead=f"{profile.location}. The roles of its columns are guessed from names, types and values.",
        alerts=[
            *(f"{column_name(column)} {why}." for column in profile.columns for why in column.suspicions),
            *(f"{sentence}." for sentence in profile.combinations),
        ],
        tiles=_tiles(profile),
        sections=_sections(profile),
    )
    return out


def column_name(column: Column) -> str:
    return column.name or "(no name)"


def column_cells(column: Column) -> list[str]:
    """Name, role, type, nulls, distinct values, unseen, Zipf exponent, AUC alone, range or most frequent values."""
    if column.low:
        seen = f"{column.low} to {column.high}"
    else:
        seen = ", ".join(f"{shown(value)} ({count:,})" for value, count in column.top[:3])
    if column.mean_length is not None and column.role == "bag":
        seen = f"{column.mean_length:.1f} per row: {seen}"
    return [
        column_name(column),
        column.role,
        column.type.split("(")[0],
        percent(column.nulls) if column.nulls else NONE,
        NONE if column.distinct is None else f"{column.distinct:,}",
        percent(column.unseen) if column.unseen else NONE,
        NONE if column.zipf is None else f"{column.zipf:.2f}",
        NONE if column.alone_auc is None else f"{column.alone_auc:.3f}",
        seen,
    ]


COLUMN_HEADS = ("column", "role", "type", "null", "distinct", "unseen", "Zipf", "AUC alone", "values")
NUMERIC_HEADS = ("null", "distinct", "unseen", "Zipf", "AUC alone")


def _tiles(profile: LogProfile) -> Iterator[Tile]:
    yield Tile("Rows", f"{profile.rows:,}", f"{len(profile.columns)} columns")
    if profile.label is not None:
        rate = NONE if profile.label_mean is None else f"mean {profile.label_mean:.4g}"
        rate = rate if profile.label_rate is None else percent(profile.label_rate)
        rule = "" if profile.label_at_least is None else f" >= {profile.label_at_least:g}"
        rule = f" is {' or '.join(profile.label_positive)}" if profile.label_positive else rule
        yield Tile("Label", rate, profile.label + rule)
    if profile.time is not None and profile.first and profile.last:
        yield Tile("Time", f"{len(profile.days):,} days", f"{profile.first[:10]} to {profile.last[:10]}")
    for column in profile.of("user", "item"):
        yield Tile(f"{column.role.capitalize()}s", f"{column.distinct or 0:,}", column.name)
    yield Tile("Suspicious", str(sum(bool(column.suspicions) for column in profile.columns)), "columns")


def _sections(profile: LogProfile) -> Iterator[Section]:
    grid = Grid(COLUMN_HEADS, [Line(column_cells(column)) for column in profile.columns], texts=(0, 1, 2, 8))
    note = (
        f"Unseen: how much of the {profile.latest} of the rows has values that no earlier row has. "
        "AUC alone: how well this column alone predicts the label, out of fold. 0.5 is chance; near 1 is a leak."
    )
    yield Section("Columns", note, grids=[grid])
    if len(profile.days) > 1:
        days, rows, rates = _binned(profile.days)
        drawing = svg(
            plots.over_time("Rows over time", days, rows, rates, binary=profile.label_rate is not None),
            "rows and label rate over time",
        )
        yield Section("Time", wide=[(drawing, "")])
    skewed = [column for column in profile.of("user", "item", "id", "bag") if len(column.frequencies) > 9]
    if skewed:
        chosen = sorted(skewed, key=lambda column: -(column.distinct or 0))[:_CURVES]
        curves = {column.name: column.frequencies for column in chosen}
        drawing = svg(plots.frequencies("Frequencies", curves), "frequency by rank")
        caption = "The steeper the line, the fewer values make up most rows; where it ends at 1, values are seen once."
        yield Section("Skew", figures=[(drawing, caption)])
    shapes = list(islice(_shapes(profile), _HISTOGRAMS))
    if shapes:
        yield Section(
            "Distributions",
            "Of an even sample; the lowest and the highest 0.5% are in the outermost bars.",
            figures=shapes,
        )


def _binned(days: Sequence[tuple[str, int, float]]) -> tuple[list[str], list[float], list[float]]:
    """First day, rows a day and label rate of at most ``_POINTS`` spans; no rate where few rows would make it noise."""
    dates = np.array([day for day, _, _ in days], dtype="datetime64[D]").astype(np.int64)
    rows, rates = np.array([row[1:] for row in days], dtype=np.float64).T
    width = -(-(dates[-1] - dates[0] + 1) // _POINTS)
    span = (dates - dates[0]) // width
    total = np.bincount(span, rows)
    with np.errstate(invalid="ignore"):
        rate = np.where(total >= _ENOUGH_ROWS, np.bincount(span, rows * rates) / total, np.nan)
    first = np.arange(len(total)) * width + dates[0]
    return first.astype("datetime64[D]").astype(str).tolist(), (total / width).tolist(), rate.tolist()


def _shapes(profile: LogProfile) -> Iterator[tuple[Markup, str]]:
    for column in profile.columns:
        if column.values is not None:
            yield svg(plots.histogram(column_name(column), column.values, "value"), f"histogram of {column.name}"), ""
        elif column.lengths is not None:
            drawing = plots.histogram(column_name(column), column.lengths, "values a row")
            yield svg(drawing, f"list lengths of {column.name}"), ""
