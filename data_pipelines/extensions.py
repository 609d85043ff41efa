"""Extensions: modules of the user that register feature kinds, file formats, interactions, poolings and more.

:func:`load` imports the modules that the user named: under ``extensions`` in a config that a command is given, or with
the option ``--extension``. What is stored (a data set, a run, an artifact) only records which extensions it needs, and
:func:`check` refuses it if one of them has not been imported. Nothing that is read from disk is ever imported.
"""

import importlib
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from data_pipelines.errors import Notice, UserError

PACKAGES = ("data_pipelines", "models", "serving", "recsys")
"""The packages of this project."""
META = "extensions"
"""The entry of a manifest's ``meta`` that records extensions: their versions by name."""
_UNKNOWN = "unknown"

_loaded: list[str] = []


def loaded() -> tuple[str, ...]:
    """The names that :func:`load` has imported in this process, in their order."""
    return tuple(_loaded)


def load(names: Iterable[str], source: str = "extensions") -> None:
    """Import modules, which register what they add.

    A module that is not installed is looked for in the current folder.

    Args:
        names: Dotted names of modules, such as ``my_package.parts``.
        source: Where the user named them, for errors.

    Raises:
        UserError: A name is not that of a module, there is no such module, or importing it raises an error.

    Example:
        >>> load(["json.tool"])
        >>> loaded()[-1]
        'json.tool'
    """
    for name in names:
        if not _is_name(name):
            raise UserError(f"{source}: {name!r} is not the name of a Python module: write it as my_package.parts.")
        _import(name, source)
        if name not in _loaded:
            _loaded.append(name)


def _is_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _import(name: str, source: str) -> None:
    top = name.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None and "" not in sys.path:
        sys.path.append("")  # the current folder, after everything that is installed
        importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{source}: there is no module {error.name!r}: install the package of the extension {name}, or run the "
                "command in the folder that holds it."
            ) from None
        raise UserError(f"{source}: the extension {name} needs another module ({error}): install it.") from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise UserError(f"{source}: the extension {name} cannot be imported ({reason}{_place(error)}).") from error


def _place(error: BaseException) -> str:
    """Where an import failed: the last line that is not Python's own import system."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f", line {frames[-1].lineno} of {frames[-1].filename}" if len(frames) > 1 else ""


def extension_of(module: str) -> str:
    """The extension that a module belongs to: the one that the user named, or else the module itself."""
    return next((name for name in _loaded if module == name or module.startswith(f"{name}.")), module)


def versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each module: its own or its package's ``__version__``, or that of its distribution."""
    return {name: _version(name) for name in sorted(set(names))}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The distributions of each top-level module: a look at the metadata of everything that is installed."""
    return packages_distributions()


def _version(name: str) -> str:
    top = name.partition(".")[0]
    for module in (sys.modules.get(name), sys.modules.get(top)):
        if isinstance(found := getattr(module, "__version__", None), str):
            return found
    for distribution in _distributions().get(top, ()):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return _UNKNOWN


def check(meta: Mapping[str, Any], place: object) -> None:
    """Refuse what needs an extension that has not been imported; warn if an extension has another version.

    Args:
        meta: The ``meta`` of a manifest.
        place: The directory, for messages.

    Raises:
        UserError: An extension has not been imported.
    """
    needed = meta.get(META, {})
    if not isinstance(needed, dict) or not all(map(_is_name, needed)):
        raise UserError(f"{place} has a damaged manifest (meta.{META} does not hold versions by module): restore it.")
    for name in missing(needed):
        raise UserError(f"{place} {needs(name)}")
    for name, made_with in needed.items():
        if made_with != (now := _version(name)):
            warnings.warn(
                f"{place} was made with version {made_with} of the extension {name}, and version {now} is imported: "
                "its results may differ.",
                Notice,
                stacklevel=3,
            )


def missing(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that have not been imported."""
    return [name for name in names if name not in sys.modules]


def needs(name: str) -> str:
    """The end of a sentence on something that needs an extension which has not been imported."""
    return (
        f"needs the extension {name}: if you trust that module, name it with `--extension {name}`, under `extensions` "
        f'in the config that you give, or in Python with rs.load_extensions(["{name}"]).'
    )
