"""Verbs of raw logs: import, inspect, init."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError
from recsys.cli.common import Json, app, command, finish
from recsys.cli.log_options import LogOptions, takes_log_options

if TYPE_CHECKING:
    from data_pipelines.profile.inspection import LogProfile

imports = typer.Typer(no_args_is_help=True, help="Turn a public data set into an ordinary Parquet log.")
app.add_typer(imports, name="import")

Source = Annotated[Path, typer.Argument(help="The data set, as its publisher wrote it.")]
Log = Annotated[Path, typer.Argument(help="The Parquet log to write.")]
_FILE_WIDTH = 160
"""Width of a table that is written to a file or a pipe."""
_WORTH_SAYING = 0.05
"""Share of unseen values from which a sentence mentions it."""


@imports.command()
def movielens(path: Source, out: Log, json: Json = False) -> None:
    """MovieLens-1M: the folder of ratings.dat, users.dat and movies.dat, joined."""
    from data_pipelines.importers.movielens import convert

    _finish_import(convert(path, _parquet(out)), out, "ml-1m", json)


@imports.command()
def criteo(path: Source, out: Log, json: Json = False) -> None:
    """Criteo display advertising: train.txt, or a part of it."""
    from data_pipelines.importers.criteo import convert

    _finish_import(convert(path, _parquet(out)), out, "criteo", json)


@imports.command()
def frappe(path: Source, out: Log, json: Json = False) -> None:
    """Frappe_x1: the folder of train.csv, valid.csv and test.csv."""
    from data_pipelines.importers.frappe import convert

    _finish_import(convert(path, _parquet(out)), out, "frappe", json)


def _parquet(out: Path) -> Path:
    if out.suffix != ".parquet":
        raise UserError(f"{out}: the log is written as Parquet, so give it a name that ends in .parquet.")
    return out


def _finish_import(rows: int, out: Path, example: str, json: bool) -> None:
    finish({"log": out, "rows": rows}, json, f"recsys prepare examples/{example}.yaml DATASET data.log={out}")


@app.command()
@takes_log_options
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A log, or a data set, run or artifact.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots, too (of a log).")] = None,
    json: Json = False,
    *,
    options: LogOptions,
) -> None:
    """Describe a log (types, nulls, skew, suspicious columns), or anything that recsys wrote."""
    from recsys.reports.summaries import kind_of

    kind = kind_of(Path(path))
    if kind is not None:
        finish({"kind": kind, **_summary(Path(path), kind, json)}, json)
        return
    if Path(path, "config.yaml").is_file():
        raise UserError(f"{path} is a run that is not complete: resume it with `recsys train --resume`.")
    from data_pipelines.profile.inspection import inspect_log
    from data_pipelines.profile.starter.config import what_is_missing

    profile = inspect_log(path, **options.arguments(path))
    _print_profile(profile, json)
    if html is not None:
        from recsys.reports.log_page import write_log_page

        write_log_page(profile, html)
    written: dict[str, Any] = {"log": path, "rows": profile.rows} | ({"page": html} if html else {})
    details = profile.model_dump(mode="json", exclude={"location", "rows"}) if json else {}
    missing = what_is_missing(profile)
    step = command("init", path, "CONFIG", *options.words()) if missing is None else f"recsys init: {path} {missing}"
    finish({**written, **details}, json, step)


@app.command()
@takes_log_options
def init(
    log: Annotated[str, typer.Argument(metavar="LOG", help="File, folder, glob or address of the log.")],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML to write.")],
    json: Json = False,
    *,
    options: LogOptions,
) -> None:
    """Write a commented experiment to start from, by looking at the columns of a log."""
    from data_pipelines.disk.storage import write_file
    from data_pipelines.profile.inspection import inspect_log
    from data_pipelines.profile.starter.config import starter_config

    if config.exists():
        raise UserError(f"{config} already exists: name another file, or remove it first.")
    profile = inspect_log(log, **options.arguments(log))
    write_file(config, starter_config(profile))
    result = {
        "config": config,
        "rows": profile.rows,
        "label": profile.label,
        "time": profile.time,
        "user": profile.user,
        "item": profile.item,
        "split": "time" if profile.time is not None else "random",
    }
    if profile.split is not None:
        result["split"] = profile.split
    finish(result, json, f"read {config}, then: {command('prepare', config, 'DATASET')}")


def _summary(path: Path, kind: str, json: bool) -> dict[str, Any]:
    from recsys.evaluation.table_ranks import shown_ranks
    from recsys.reports.summaries import dataset_summary, run_summary

    match kind:
        case "dataset":
            return dataset_summary(path).model_dump()
        case "run":
            run = run_summary(path)
            return run.model_dump() | {"effective_rank": shown_ranks(run.effective_rank, as_json=json)}
        case "artifact":
            from recsys.cli.serve import summary
            from serving.artifact.artifact import Artifact

            return summary(Artifact.open(path, verify="full"))
    raise UserError(f"{path} is a {kind}: `recsys inspect` reads logs, data sets, runs and artifacts.")


def _print_profile(profile: "LogProfile", json: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from recsys.reports.log_page import COLUMN_HEADS, NUMERIC_HEADS, column_cells, column_name

    console = Console(stderr=json)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for head in COLUMN_HEADS:
        if head == "values":
            table.add_column(head, overflow="ellipsis", no_wrap=True, ratio=1)
        else:
            table.add_column(head, justify="right" if head in NUMERIC_HEADS else "left", no_wrap=True)
    for column in profile.columns:
        table.add_row(*map(Text, column_cells(column)), style="yellow" if column.suspicions else None)
    console.print(table)
    for sentence in _sentences(profile):
        console.print(sentence, highlight=False, markup=False)
    for column in profile.columns:
        for why in column.suspicions:
            console.print(Text.assemble((column_name(column), "yellow"), f" {why}."))
    console.print()


def _sentences(profile: "LogProfile") -> Iterator[str]:
    """Sentences about a log, besides the table of its columns."""
    from data_pipelines.profile.wording import percent

    yield ""
    for side in profile.sides:
        keys = ", ".join(side.join.keys)
        yield f"Joined {side.join.table} by {keys}: {percent(side.unmatched)} of the rows have no row in it."
    if profile.time is not None:
        yield f"From {profile.first} to {profile.last} ({profile.time})."
        if profile.time in profile.time_formats:
            formats = " or ".join(map(repr, profile.time_formats[profile.time]))
            yield f"The times are read as {formats}: a guess, which `init` writes as time_format."
        yield from (f"{profile.time} {note}." for note in profile.time_notes)
    if profile.label is not None:
        note = f" ({profile.label_note})" if profile.label_note else ""
        if profile.label_rate is not None:
            yield f"Label {profile.label}: {percent(profile.label_rate)} of the labels are positive{note}."
        else:
            yield f"Label {profile.label}: a {profile.label_kind} with mean {profile.label_mean:.4g}{note}."
    if profile.lists is not None:
        share, size = percent(profile.lists.share), f"{profile.lists.size:g}"
        keys = ", ".join(profile.lists.keys)
        yield f"Rows that share {keys} seem to be lists: {share} of the rows, {size} in the median list."
    described = profile.of("user", "item", "id", "bag", "number")
    news = [column for column in described if (column.unseen or 0) > _WORTH_SAYING]
    if news:
        shares = ", ".join(f"{column.name} {percent(column.unseen or 0)}" for column in news)
        yield f"Share of the {profile.latest} with values that are new there: {shares}."
    if profile.outcomes_auc is not None:
        beside = "" if profile.others_auc is None else f", the other columns {profile.others_auc:.3f}"
        yield f"Together the columns that look like outcomes have AUC {profile.outcomes_auc:.3f} of the label{beside}."
    for exclusion in profile.exclusions:
        left_out = f"`where: {exclusion.condition}` in a config leaves them out"
        yield f"{percent(exclusion.share)} of the rows {exclusion.reason}: {left_out}."
    for combination in profile.combinations:
        yield f"Look at this: {combination}, as if one of them were recorded after it."
