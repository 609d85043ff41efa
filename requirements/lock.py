"""Write the pinned lists from the environment that runs this: ``python requirements/lock.py``.

``cpu.txt`` holds everything the product needs at runtime on a CPU machine, ``dev.txt`` adds tests, lint, docs, the
cluster engine, ONNX and MLflow. Both are complete (every dependency of a dependency), so they install with
``pip install --no-deps``: TorchRec asks for the CUDA build of FBGEMM without a version, and a resolver would lay it
over the CPU build.
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
CPU_BUILD = {"fbgemm-gpu": "fbgemm-gpu-cpu"}
RUNTIME_EXTRAS = ("serve", "lake", "baselines", "tune")
DEV_EXTRAS = ("cluster", "dev", "docs", "onnx", "tracking")
NEVER_PINNED = {"pip", "sparse-recsys"}


def closure(wanted: Iterable[str], python: str | None = None) -> dict[str, str]:
    """Every distribution that ``wanted`` needs, by itself or through another, with the version installed here.

    Args:
        python: The version of Python to ask for, such as ``3.13``; that of this process if absent.
    """
    here = {} if python is None else {"python_version": python, "python_full_version": f"{python}.0"}
    pins: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        name = CPU_BUILD.get(name, name)
        visit = (name, frozenset(requirement.extras))
        if visit in seen or name in NEVER_PINNED:
            continue
        seen.add(visit)
        pins[name] = version(name).partition("+")[0]
        for text in requires(name) or ():
            needed = Requirement(text)
            environments = [{"extra": extra} | here for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                queue.append(needed)
    return pins


def pinned(pins: dict[str, str]) -> str:
    return "".join(f"{name}=={pins[name]}\n" for name in sorted(pins))


def lists(python: str | None = None) -> tuple[str, str]:
    """The texts of ``cpu.txt`` and ``dev.txt`` for this environment, or for another version of Python."""
    pyproject = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    runtime = [*project["dependencies"], *pyproject["build-system"]["requires"]]
    cpu = closure([*runtime, *(text for extra in RUNTIME_EXTRAS for text in extras[extra])], python)
    dev = closure((text for extra in DEV_EXTRAS for text in extras[extra]), python)
    head = "# Complete: install with `pip install --no-deps -r`. Made by requirements/lock.py.\n"
    return (
        head + pinned(cpu),
        head + "-r cpu.txt\n" + pinned({name: pin for name, pin in dev.items() if name not in cpu}),
    )


def main() -> None:
    if sys.version_info[:2] != (3, 11) or not sys.platform.startswith("linux"):
        sys.exit("The lists are for Python 3.11 on Linux: run this in the project's own environment there.")
    for name, text in zip(("cpu.txt", "dev.txt"), lists(), strict=True):
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
