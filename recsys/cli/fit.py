"""``recsys fit``: one command from a log to an artifact."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.cli.common import Address, EngineName, Json, app, command, finish, say, trial_engine
from recsys.cli.log_options import LogOptions, takes_log_options

if TYPE_CHECKING:
    from recsys.studies.fit import Fit


@app.command("fit")
@takes_log_options
def fit_verb(
    log: Annotated[str, typer.Argument(metavar="LOG", help="File, folder, glob or address of the log.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write, or to continue.")],
    minutes: Annotated[float, typer.Option(min=0.001, help="Budget of the search, in minutes of trials.")] = 10.0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Trials that run at the same time.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of each trial.")] = None,
    engine: EngineName = "local",
    address: Address = None,
    json: Json = False,
    *,
    options: LogOptions,
) -> None:
    """From a log to an artifact: config, data set, search, baselines, export; run it again to continue."""
    from recsys.studies.fit import finished_fit, fit

    if (finished := finished_fit(log, folder, minutes)) is not None:
        typer.echo(
            f"recsys: {folder} has finished; a larger --minutes than {finished.minutes:g} continues it.", err=True
        )
        _finish(finished, json)
        return
    each = threads or max(1, len(os.sched_getaffinity(0)) // jobs)
    with trial_engine(engine, address, jobs=jobs, threads=each) as carries_out:
        found = fit(log, folder, carries_out, minutes=minutes, columns=options.arguments(log), say=say)
    _finish(found, json)


def _finish(found: "Fit", json: bool) -> None:
    content: dict[str, Any] = found.model_dump(mode="json")
    if not json:
        del content["chosen"]  # for people, what differs from the config tells more
        content["standing"] = {split: standing.lines() for split, standing in found.standing.items()}
    finish(content, json, command("score", found.artifact, "INPUT", "OUTPUT"))
