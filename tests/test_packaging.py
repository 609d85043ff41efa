"""The package as others meet it: pinned lists that are whole, names that a folder cannot shadow, and import arrows."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ROOMS = ("data_pipelines", "models", "serving", "recsys")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(*files: str) -> dict[str, str]:
    lines = [line for file in files for line in (ROOT / "requirements" / file).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-r")))


def test_pinned_lists_are_what_the_environment_gives():
    """Complete by construction: the lists are the closure of what pyproject.toml asks for."""
    cpu, dev = runpy.run_path(str(ROOT / "requirements/lock.py"))["lists"]()
    assert (ROOT / "requirements/cpu.txt").read_text() == cpu, "run `make lock`"
    assert (ROOT / "requirements/dev.txt").read_text() == dev, "run `make lock`"


def test_pinned_lists_serve_every_python():
    """What the pinned distributions need does not depend on a newer Python, and each of them allows it."""
    lists = runpy.run_path(str(ROOT / "requirements/lock.py"))["lists"]
    written = tuple((ROOT / "requirements" / name).read_text() for name in ("cpu.txt", "dev.txt"))
    allowed = {name: SpecifierSet(metadata(name).get("Requires-Python") or "") for name in pins("cpu.txt", "dev.txt")}
    for python in ("3.12", "3.13"):
        assert lists(python) == written
        assert [name for name, pythons in allowed.items() if not pythons.contains(f"{python}.0")] == []
        assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(f"{python}.0")


def test_pins_satisfy_what_pyproject_asks_for():
    pinned = pins("cpu.txt", "dev.txt")
    extras = PYPROJECT["project"]["optional-dependencies"]
    for text in [*PYPROJECT["project"]["dependencies"], *(text for texts in extras.values() for text in texts)]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name).replace("fbgemm-gpu", "fbgemm-gpu-cpu")
        assert requirement.specifier.contains(pinned[name]), text


@pytest.mark.parametrize("file", ["cpu.txt", "dev.txt"])
def test_pinned_lists_name_no_host(file):
    note, *lines = (ROOT / "requirements" / file).read_text().splitlines()
    assert re.fullmatch(r"# Complete: install with `pip install --no-deps -r`. Made by [a-z/.]+", note)
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+|-r cpu\.txt", line)] == []


def test_one_build_of_fbgemm():
    pinned = pins("cpu.txt", "dev.txt")
    assert "fbgemm-gpu-cpu" in pinned
    assert "fbgemm-gpu" not in pinned


@pytest.fixture
def folder_of_namesakes(tmp_path: Path) -> Path:
    """A working directory that holds folders named as our packages, as a user's project well may."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise ImportError('a namesake was imported')\n")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sys.executable).with_name("recsys"))],
        [sys.executable, "-P", "-m", "recsys"],
    ],
    ids=["recsys", "python -P -m recsys"],
)
def test_works_beside_folders_of_the_same_names(command, folder_of_namesakes):
    done = subprocess.run([*command, "doctor"], cwd=folder_of_namesakes, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FBGEMM loads and looks rows up" in done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_typed(room):
    assert (ROOT / room / "py.typed").is_file()


def test_help_is_quick_to_import():
    program = "import sys; import recsys.cli; print({'torch', 'polars', 'pandas', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
