"""Modules of ``benchmarks/``, which is no installed package, for the tests of what they have in common."""

import importlib.util
from pathlib import Path
from types import ModuleType


def benchmark_module(name: str) -> ModuleType:
    """The module ``benchmarks/NAME.py``."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
