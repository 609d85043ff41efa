"""Limits that keep the code in pieces a reader can hold: modules per folder, lines per module and per function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_pipelines", "models", "serving", "recsys")
MODULES_PER_FOLDER, LINES_PER_MODULE, LINES_PER_FUNCTION = 14, 350, 60


@pytest.mark.parametrize("room", ROOMS)
def test_folders_modules_and_functions_are_small(room: str) -> None:
    assert list(_too_large(ROOT / room)) == []


def _too_large(room: Path) -> Iterator[str]:
    for folder in [room, *(path for path in room.rglob("*") if path.is_dir())]:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > MODULES_PER_FOLDER:
            yield f"{folder.relative_to(ROOT)}: {len(modules)} modules"
        for path in modules:
            source = path.read_text()
            lines = source.count("\n")
            if lines > LINES_PER_MODULE:
                yield f"{path.relative_to(ROOT)}: {lines} lines"
            yield from (f"{path.relative_to(ROOT)}: {name}" for name in _long_functions(ast.parse(source)))


def _long_functions(module: ast.Module) -> Iterator[str]:
    """Functions with too many lines after their signature and docstring."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = 0 if not statements else (statements[-1].end_lineno or 0) - statements[0].lineno + 1
            if lines > LINES_PER_FUNCTION:
                yield f"{node.name}: {lines} lines"
