"""``recsys daily``: one day of daily training."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError
from recsys.cli.common import Json, Overrides, app, command, finish, progress_bar, say
from recsys.cli.serve import optional_part
from recsys.cli.train import Config

if TYPE_CHECKING:
    from recsys.daily.history import Day, History


@app.command("daily")
def daily_verb(
    config: Config,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of all days, to begin or to continue.")],
    log: Annotated[str, typer.Option(metavar="NEW_DAY", help="File, folder, glob or address of the day's rows.")],
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option("--input", metavar="INPUT", help="Rows to score with the artifact of the day.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="OUTPUT", help="Folder to write the scores to; may be an address.")
    ] = None,
    jobs_db: Annotated[
        str | None,
        typer.Option(
            envvar="RECSYS_JOBS_DB", help="Database of a service, whose live artifact becomes the current one."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Extend, train from yesterday's model, export, verify, compare, switch or refuse, score; resumable."""
    from recsys.config.experiment import load_config
    from recsys.daily.daily import run_day
    from recsys.daily.history import History
    from recsys.training.faults import InterruptedTrainingError

    if (source is None) != (output is None):
        raise UserError("--input says what to score and --output where to: give both or none.")
    experiment = load_config(config, overrides or ())
    with History.open(folder) as history:
        try:
            with progress_bar("training") as advance:
                day, new = run_day(experiment, history, log, say=say, on_step=advance)
        except InterruptedTrainingError:
            say("stopped: run the same command again to continue the day")
            raise typer.Exit(1) from None
        if not new:
            say(f"{log} is finished already, as day {day.number}: nothing has changed")
        elif not day.switched:
            say(f"the model of the day was refused, and the earlier one stays: {'; '.join(day.reasons)}")
        if jobs_db is not None:
            _make_live(history, jobs_db)
        result: dict[str, Any] = {"day": day.number, "new": new, "current": history.current}
        result |= day.model_dump(mode="json", exclude={"number", "artifact", "log_checksum"})
        if not json and day.latest is not None:
            result["latest"] = datetime.fromtimestamp(day.latest // 1_000_000, UTC).isoformat()
        if source is not None and output is not None:
            result["scores"] = _score(history, day, source, output)
    finish(result, json, command("score", history.current, "INPUT", "OUTPUT"))


def _make_live(history: "History", jobs_db: str) -> None:
    """Register the current artifact at a service and make it live, which changes nothing if it is."""
    from serving.artifact.artifact import Artifact

    with optional_part():
        from serving.http.jobs import JobStore
    assert history.last is not None
    path = history.current.resolve()
    store, name = JobStore(jobs_db), f"{history.folder.resolve().name}-{history.last.number:04}"
    store.register(name, str(path), Artifact.open(path).fingerprint)
    store.make_live(name)


def _score(history: "History", day: "Day", source: str, output: str) -> dict[str, Any]:
    from serving.batch.score import score

    with progress_bar("scoring") as advance:
        result = score(
            history.folder / day.artifact, source, output, progress=lambda rows, total: advance(rows, total=total)
        )
    return {**vars(result), "output": output}
