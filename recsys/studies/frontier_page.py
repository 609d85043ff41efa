"""The figures and the page of a frontier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recsys.metrics.metric import Metric
from recsys.plots.studies import Point, cost_benefit
from recsys.plots.style import Draw, svg
from recsys.reports.pages import Grid, Line, Section, Tile, byte_size, figure_of, signed, write_page


def frontier_drawings(table: pl.DataFrame, chosen: int, metric: Metric) -> dict[str, Draw]:
    """Drawings by file name: the main metric against bytes, and against rows per second where it was measured."""

    def points(cost: str) -> list[Point]:
        return [
            Point(
                row["point"] if row["frontier"] else "",
                row[cost],
                row[metric.name],
                row[f"{metric.name}_low"],
                row[f"{metric.name}_high"],
                i == chosen,
            )
            for i, row in enumerate(table.iter_rows(named=True))
            if not row["failed"]
        ]

    label, low = f"test {metric.label}", metric.better == "lower"
    drawings = {
        f"{metric.name}-bytes": cost_benefit(
            "Quality against size",
            "weights and vocabulary",
            label,
            points("model_bytes"),
            x_text=byte_size,
            low_benefit=low,
        )
    }
    if table.filter(pl.col("failed") == "")["rows_per_s"].is_finite().all():
        drawings[f"{metric.name}-rate"] = cost_benefit(
            "Quality against speed",
            "rows scored per second",
            label,
            points("rows_per_s"),
            x_text="{:,.0f}".format,
            less_is_better=False,
            low_benefit=low,
        )
    return drawings


def write_frontier_page(
    path: Path, name: str, table: pl.DataFrame, chosen: dict[str, Any], drawings: Mapping[str, Draw], metric: Metric
) -> None:
    """Write the page of a frontier, with ``table`` and the row of the ``chosen`` point."""
    losses = ["logloss"] if "logloss" in table.columns else []
    rows = [
        Line(
            [
                row["point"],
                figure_of(row[metric.name]),
                signed(row[f"{metric.name}_change"]),
                *(figure_of(row[loss]) for loss in losses),
                byte_size(row["model_bytes"]),
                figure_of(row["ratio"], 1),
                f"{row['rows_per_s']:,.0f}",
                "yes" if row["frontier"] else "",
            ],
            "strong" if row["point"] == chosen["point"] else "",
        )
        for row in table.filter(pl.col("failed") == "").sort("model_bytes").iter_rows(named=True)
    ]
    heads = ["Point", f"Test {metric.label}", "change", *("Log loss" for _ in losses), "Bytes", "times smaller"]
    heads += ["Rows/s", "On the frontier"]
    figures = [
        (svg(draw, title), "Points that another beats in both are grey; the chosen one is orange.")
        for title, draw in drawings.items()
    ]
    failed = table.filter(pl.col("failed") != "").iter_rows(named=True)
    write_page(
        path,
        title=name,
        kind="Frontier",
        lead=f"What size costs: {len(table)} points; bytes are those of weights and vocabularies, as served.",
        alerts=[f"{row['point']} failed: {row['failed']}." for row in failed],
        tiles=[
            Tile("Chosen", byte_size(chosen["model_bytes"]), chosen["point"]),
            Tile("Times smaller", f"{chosen['ratio']:.1f}", "than the float32 checkpoint"),
            Tile(
                f"Test {metric.label}",
                figure_of(chosen[metric.name]),
                f"{chosen[f'{metric.name}_change']:+.4f} against the config as it is",
            ),
        ],
        sections=[
            Section("Frontier", figures=figures),
            Section("Points", grids=[Grid(heads, rows, texts=(0, len(heads) - 1))]),
        ],
    )
