"""Verbs of data: prepare, state."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from recsys.cli.common import Json, LateEvents, Overrides, Verbs, app, command, finish, progress_bar, say_side_tables

if TYPE_CHECKING:
    from data_pipelines.disk.parallel import Engine


@app.command()
def prepare(
    config: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
    dataset: Annotated[str, typer.Argument(help="The data set directory to make; may be an address.")],
    overrides: Overrides = None,
    log: Annotated[str | None, typer.Option(help="Read this log instead of the config's `data.log`.")] = None,
    extend: Annotated[
        Path | None, typer.Option(help="A data set to extend: its ids and past are kept; reports the drift.")
    ] = None,
    late: Annotated[
        LateEvents,
        typer.Option(help="With --extend: what to do with rows that are not later than its latest event."),
    ] = "refuse",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Run in this process, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster; by default, Ray starts on this machine.")
    ] = None,
    json: Json = False,
) -> None:
    """Encode a log into a data set: vocabularies, splits, histories, statistics."""
    import time

    from data_pipelines.dataset.dataset import prepare
    from data_pipelines.disk.object_store import sent
    from recsys.config.experiment import load_config

    data = load_config(config, overrides or []).data
    start = time.perf_counter()
    with _workers(engine, address) as workers, sent(dataset) as folder, progress_bar("prepare") as advance:
        made = prepare(data, folder, log=log, extend=extend, late=late, progress=advance, engine=workers)
        profile = made.profile
    seconds = time.perf_counter() - start
    result = {
        "dataset": dataset,
        "rows": profile["rows"],
        "splits": made.splits,
        **({"left_out": profile["left_out"]} if data.where is not None else {}),
        "refused": profile["refused"],
        **({"duplicates": profile["duplicates"]} if profile["duplicates"] else {}),
        "tables": profile["tables"],
        "seconds": seconds,
        "rows_per_s": profile["rows"] / seconds,
        **({"drift": profile["drift"]} if extend is not None else {}),
    }
    finish(result, json, command("train", config, dataset, "RUN"))


def _workers(engine: str, address: str | None) -> "AbstractContextManager[Engine | None]":
    if engine == "local":
        return nullcontext()
    from recsys.cluster.preparing import ray_engine

    return ray_engine(address)


state = typer.Typer(cls=Verbs, help="What histories and statistics need at scoring time.", no_args_is_help=True)
app.add_typer(state, name="state")


@state.command()
def update(
    folder: Annotated[Path, typer.Argument(metavar="STATE", help="The state to update.")],
    log: Annotated[str, typer.Argument(help="The events since then.")],
    out: Annotated[Path | None, typer.Option(help="Write the new state here, and leave the old one.")] = None,
    late: Annotated[
        LateEvents,
        typer.Option(help="What to do with events that are not later than the state's latest event."),
    ] = "refuse",
    json: Json = False,
) -> None:
    """Update a state with the events of another log."""
    from datetime import UTC, datetime

    from data_pipelines.past.state import State

    opened = State.open(folder)
    say_side_tables(folder, [join.table for join in opened.plan.config.joins])
    updated = opened.update(log, out, late=late)
    latest = datetime.fromtimestamp(updated.latest / 1e6, UTC)
    finish({"state": updated.path, "latest_event": latest.isoformat()}, json, "recsys score ARTIFACT INPUT OUTPUT")
