"""The options of verbs that inspect a raw log: corrections of wrong guesses."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.files.base import FileFormat


@dataclass(frozen=True)
class LogOptions:
    """What the user says about a log; everything else is guessed.

    A verb that is decorated with :func:`takes_log_options` has one option per attribute.
    """

    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The label, if the guess is wrong.")] = None
    positive: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUE", help="A value of the label that counts as positive, if it is text."),
    ] = None
    at_least: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Labels of at least this number count as positive.")
    ] = None
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="The time, if the guess is wrong.")] = None
    user: Annotated[str | None, typer.Option(metavar="COLUMN", help="The user, if the guess is wrong.")] = None
    item: Annotated[str | None, typer.Option(metavar="COLUMN", help="The item, if the guess is wrong.")] = None
    format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="The format, if the guess is wrong: csv, or keys as in a config."),
    ] = None
    side: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="A side table to join; its key is guessed.")
    ] = None

    def arguments(self, location: str) -> dict[str, Any]:
        """As :func:`~data_pipelines.profile.inspection.inspect_log` takes them.

        Raises:
            UserError: The format does not exist.
        """
        given = asdict(self)
        sides = given.pop("side") or ()
        return given | {
            "positive": self.positive or (),
            "format": _format(location, self.format),
            "sides": sides,
        }

    def words(self) -> list[str]:
        """As words of a command line."""
        words: list[str] = []
        for name, value in asdict(self).items():
            for entry in value if isinstance(value, list) else [] if value is None else [value]:
                words += [f"--{name.replace('_', '-')}", f"{entry:g}" if isinstance(entry, float) else str(entry)]
        return words


def takes_log_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give ``verb`` the options of :class:`LogOptions`, which its argument ``options`` receives."""
    own = inspect.signature(verb).parameters
    shared = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(LogOptions)
    ]

    @wraps(verb)
    def with_options(**arguments: Any) -> None:
        options = LogOptions(**{field.name: arguments.pop(field.name) for field in fields(LogOptions)})
        verb(**arguments, options=options)

    signature = inspect.Signature(
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values() if p.name != "options"] + shared
    )
    with_options.__signature__ = signature  # type: ignore[attr-defined]
    with_options.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return with_options


def _format(location: str, given: str | None) -> "FileFormat | None":
    """The format that an option names: a kind, or the keys of a config's ``format``."""
    import yaml
    from pydantic import ValidationError

    from data_pipelines.files.base import FileFormat
    from data_pipelines.profile.formats import guess_format

    if given is None:
        return None
    try:
        keys = yaml.safe_load(given)
        return FileFormat.parse(keys) if isinstance(keys, dict) else guess_format(location, str(keys))
    except (yaml.YAMLError, ValidationError):
        kinds = ", ".join(FileFormat.kinds())
        raise UserError(
            f"--format {given!r} is not a format: give one of {kinds}, or keys such as "
            "'{kind: csv, delimiter: \";\"}'."
        ) from None
