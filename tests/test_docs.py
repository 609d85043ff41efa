"""Every command and every snippet in the README and the docs is run; the generated reference is whole."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import docs_runner
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_pipelines", "models", "serving", "recsys")
START = ROOT / "docs/start.md"
PAGES = sorted(page for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if page != START)


@pytest.fixture(scope="session")
def after_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as "In five minutes" leaves it; the other pages go on from there."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as monkeypatch:
        docs_runner.run(START, folder, monkeypatch)
    return folder


def test_start_in_five_minutes(after_start: Path):
    assert (after_start / "scores").is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if not any(docs_runner.blocks(page)):
        pytest.skip("nothing to run on this page")
    folder = tmp_path / "work"
    shutil.copytree(request.getfixturevalue("after_start"), folder)
    docs_runner.run(page, folder, monkeypatch)


def test_architecture_names_modules_that_are_there():
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text()))
    there = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert [
        name for name in sorted(named) if not any(path == name or path.endswith(f"/{name}") for path in there)
    ] == []


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/hooks/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_has_every_config_key(reference: ModuleType):
    page = reference.config_page()
    for _, model in reference._models(reference.ExperimentConfig):
        for name in model.model_fields:
            assert name == "kind" or f"| `{name}` |" in page


def test_reference_has_every_verb(reference: ModuleType):
    page = reference.command_page()
    for verb in ("demo", "init", "prepare", "train", "evaluate", "export", "score", "serve", "ablate", "doctor"):
        assert f"## `recsys {verb}`" in page
