"""Which source files decide a trial's numbers: those that carrying out a trial imports, directly or not."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_pipelines.disk.storage import checksum, fingerprint

ROOMS = ("data_pipelines", "models", "serving", "recsys")
ENTRY = "recsys.trials.execution"


@cache
def code_fingerprint() -> str:
    """Fingerprint of the source files in :func:`source_files`: an edit of any of them makes trials run again."""
    return fingerprint({name: checksum(path).xxh3 for name, path in source_files().items()})


@cache
def source_files(entry: str = ENTRY) -> dict[str, Path]:
    """The modules of this project that ``entry`` imports, by name, read from the source without importing them.

    Imports inside functions count, and so do the packages that a module lies in. Imports for type checkers do not.
    """
    found: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in found or (path := _path_of(name)) is None:
            continue
        found[name] = path
        waiting.extend(name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
        waiting.extend(_imports(path))
    return dict(sorted(found.items()))


def _path_of(module: str) -> Path | None:
    """The file of a module or package; ``None`` where the name is that of something in a module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


class _WithoutTypes(ast.NodeTransformer):
    """Drops what stands under ``if TYPE_CHECKING``."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_WithoutTypes().visit(ast.parse(path.read_bytes()))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in ROOMS)
