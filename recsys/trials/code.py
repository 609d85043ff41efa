"""The source files that decide a trial's results: all modules that running a trial imports, directly or indirectly."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_pipelines import extensions
from data_pipelines.disk.storage import checksum, fingerprint

ENTRY = "recsys.trials.execution"


def code_fingerprint() -> str:
    """Fingerprint of the source files of a trial: an edit of any of them makes trials run again."""
    return _fingerprint_of(*extensions.loaded())


@cache
def _fingerprint_of(*modules: str) -> str:
    files = source_files(*modules)
    return fingerprint({name: checksum(path).xxh3 for name, path in files.items()})


@cache
def source_files(*modules: str) -> dict[str, Path]:
    """The modules of this project that a trial imports, and those of extensions, by name.

    They are read from the source without importing them. Imports inside functions count, and so do the packages that
    contain a module. Imports for type checkers do not.

    Args:
        modules: Names of the extensions.
    """
    found: dict[str, Path] = {}
    waiting = [ENTRY, *modules]
    packages = {*extensions.PACKAGES, *(module.partition(".")[0] for module in modules)}
    while waiting:
        name = waiting.pop()
        if name in found or (path := _path_of(name)) is None:
            continue
        found[name] = path
        waiting.extend(name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting.extend(module for module in _imports(path, package) if module.partition(".")[0] in packages)
    return dict(sorted(found.items()))


def _path_of(module: str) -> Path | None:
    """The file of a module or package; ``None`` if the name is that of an object in a module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


class _WithoutTypes(ast.NodeTransformer):
    """Drops blocks under ``if TYPE_CHECKING``."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def _imports(path: Path, package: str) -> Iterator[str]:
    for node in ast.walk(_WithoutTypes().visit(ast.parse(path.read_bytes()))):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
