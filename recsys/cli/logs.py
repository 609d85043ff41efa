"""Verbs of raw logs: import."""

from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from recsys.cli.common import Json, app, finish

imports = typer.Typer(no_args_is_help=True, help="Make an ordinary Parquet log of a public data set.")
app.add_typer(imports, name="import")

Source = Annotated[Path, typer.Argument(help="Where the data set lies, as its publisher wrote it.")]
Log = Annotated[Path, typer.Argument(help="The Parquet log to write.")]


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
