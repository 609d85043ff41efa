"""Shared by all verbs: the ``recsys`` app, common options, the progress bar, and the output at the end.

A verb's module imports only this module at its top; everything heavy is imported inside the verb, so that
``recsys --help`` is instant.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pydantic import BaseModel

    from recsys.trials.engines import Engine


def _load_extensions(names: list[str] | None) -> None:
    from data_pipelines.extensions import load

    load(names or (), "--extension")


def _extensions(
    _: Annotated[
        list[str] | None,
        typer.Option(
            "--extension",
            metavar="MODULE",
            help="Import a module of yours that registers what the data set, run or artifact needs.",
            callback=_load_extensions,
            is_eager=True,  # arguments may open directories that need it
            expose_value=False,
        ),
    ] = None,
) -> None:
    """The option ``--extension``, from which Typer makes what :class:`Verbs` adds to each verb."""


class Verbs(TyperGroup):
    """Verbs that all have the option ``--extension``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        single = typer.Typer(add_completion=False)
        single.command()(_extensions)
        [option] = (found for found in typer.main.get_command(single).params if "--extension" in found.opts)
        for verb in self.commands.values():
            if not hasattr(verb, "commands"):
                verb.params.append(option)


app = typer.Typer(
    name="recsys",
    cls=Verbs,
    help="Recommenders with sparsity as the main subject: from raw logs to scores.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="End standard output with one line of JSON: the result.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the config, e.g. train.batch_size=4096."),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Trials that run at the same time; by default, as many as fit.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of each trial.")]
EngineName = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Run on processes of this machine, or on a Ray cluster.")
]
LateEvents = Literal["refuse", "drop", "count"]
Address = Annotated[
    str | None, typer.Option("--address", help="Address of the Ray cluster; by default, Ray starts on this machine.")
]


def say(step: str) -> None:
    """Tell on standard error what a verb does now."""
    typer.echo(f"recsys: {step}", err=True)


def local_folder(location: str) -> Path:
    """Parse an argument that names a directory to read: a path, or an address, which is fetched."""
    if "://" not in location:
        return Path(location)
    from data_pipelines.disk.object_store import fetched

    try:
        return fetched(location)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def trial_engine(
    name: Literal["local", "ray"], address: str | None, *, jobs: int | None, threads: int
) -> Iterator["Engine"]:
    """The engine of trials that the options ask for; SIGTERM and SIGINT end the verb with one sentence."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _engine(name, address, jobs=jobs, threads=threads) as engine:
            yield engine
    except KeyboardInterrupt:
        say("stopped; what is finished is kept, and the same command continues")
        raise typer.Exit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _engine(
    name: Literal["local", "ray"], address: str | None, *, jobs: int | None, threads: int
) -> AbstractContextManager["Engine"]:
    if name == "ray":
        from recsys.cluster.trials import ray_tasks

        return ray_tasks(address, jobs=jobs, threads=threads)
    from recsys.trials.engines import processes

    return processes(jobs=jobs, threads=threads)


Advance = Callable[..., None]
"""``advance(rows, note="", total=None)``: add ``rows`` to those done, show ``note``, set the total."""


@app.callback()
def _recsys(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from recsys import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in (None, "doctor"):
        from recsys.doctor import guard

        guard()


def is_main_rank() -> bool:
    """Whether this process prints to the user: the only process, or rank 0 under ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(description: str, total: int | None = None, *, unit: str = "rows") -> Iterator[Advance]:
    """Show progress with rate and time left on standard error; yield ``advance(rows, note="")``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s", style="progress.data.speed")

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.completed:,.0f}" + ("" if task.total is None else f"/{task.total:,.0f}"))

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        Count(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (is_main_rank() and console.is_terminal)) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(rows: int, note: str = "", *, total: int | None = None) -> None:
            progress.advance(task, rows)
            if total is not None:
                progress.update(task, total=total)
            if note:
                progress.update(task, note=note)

        yield advance


def command(*words: object) -> str:
    """A line to run in a shell: ``recsys`` and these words, quoted if necessary, with the extensions in use."""
    from data_pipelines.extensions import loaded

    return shlex.join(["recsys", *map(str, words), *(f"--extension={name}" for name in loaded())])


def finish(result: "Mapping[str, Any] | BaseModel", json_line: bool, next_step: str = "") -> None:
    """End a verb: print ``result``, and what to run next; with ``--json`` the last line is one JSON object.

    Numbers that JSON cannot hold (NaN, infinities) become ``null``, paths become text, and credentials in addresses
    become ``***``. Ranks other than 0 print nothing.
    """
    from data_pipelines.redaction import redact, redacted

    if not is_main_rank():
        return
    content: Mapping[str, Any] = result if isinstance(result, Mapping) else result.model_dump()
    notes = sys.stderr if json_line else sys.stdout
    for line in _lines(content):
        print(redact(line), file=notes)
    if next_step:
        print(f"\nNext: {redact(next_step)}", file=notes)
    if json_line:
        print(json.dumps(redacted(_plain(content)), allow_nan=False), flush=True)


def say_side_tables(directory: object, tables: Sequence[str]) -> None:
    """Name on standard error the side tables that a directory makes this process read, before they are read.

    Args:
        directory: The artifact or state that names the tables.
        tables: Paths and addresses, as it names them.
    """
    from data_pipelines.redaction import redact

    if tables and is_main_rank():
        names = ", ".join(redact(repr(table)) for table in tables)
        print(f"recsys: {directory} reads the side tables {names}.", file=sys.stderr, flush=True)


def _lines(result: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key!s:<{width}}  {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return number if abs(number) < float("inf") else None
