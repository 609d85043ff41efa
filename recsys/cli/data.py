"""Verbs of data: prepare, state."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.common import Json, Overrides, app, finish, progress_bar


@app.command()
def prepare(
    config: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
    dataset: Annotated[Path, typer.Argument(help="The data set directory to make.")],
    overrides: Overrides = None,
    log: Annotated[str | None, typer.Option(help="Read this log in place of the config's `data.log`.")] = None,
    json: Json = False,
) -> None:
    """Encode a log into a data set: vocabularies, splits, histories, statistics."""
    import time

    from data_pipelines.dataset import prepare
    from recsys.config import load_config

    data = load_config(config, overrides or []).data
    start = time.perf_counter()
    with progress_bar("prepare") as advance:
        made = prepare(data, dataset, log=log, progress=advance)
    seconds = time.perf_counter() - start
    profile = made.profile
    result = {
        "dataset": made.path,
        "rows": profile["rows"],
        "splits": made.splits,
        "refused": profile["refused"],
        "tables": profile["tables"],
        "seconds": seconds,
        "rows_per_s": profile["rows"] / seconds,
    }
    finish(result, json, f"recsys train {config} {dataset} RUN")
