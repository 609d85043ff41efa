"""``import recsys as rs``: light, lazy, and the same names for people, type checkers and ``dir``."""

import ast
import subprocess
import sys
from pathlib import Path

import recsys as rs


def test_every_name_is_there_and_is_documented() -> None:
    for name in set(rs.__all__) - {"__version__"}:
        value = getattr(rs, name)
        assert not isinstance(value, type(sys)), f"{name} is a module"
        assert value.__doc__, name
    assert set(rs.__all__) <= set(dir(rs))


def test_type_checkers_see_what_python_gives() -> None:
    tree = ast.parse(Path(rs.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        entry.asname or entry.name: (node.module, entry.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for entry in node.names
    }
    assert set(seen) == set(rs.__all__) - {"__version__"}
    for name, (module, attribute) in seen.items():
        assert rs._PLACES[name] in (module, f"{module}:{attribute}")


def test_an_import_loads_nothing_heavy_and_wings_do_not_hide_functions() -> None:
    program = (
        "import sys, recsys as rs\n"
        "assert not {'torch', 'polars', 'pydantic', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
        "import recsys.exporting.export, recsys.evaluation.evaluate\n"
        "assert callable(rs.export) and callable(rs.evaluate)\n"
        "try: rs.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "no attribute 'nothing'" in done.stdout
