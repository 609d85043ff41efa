"""Every command and every snippet in the README and the docs is run; the generated reference is whole."""

import importlib.util
import random
import re
import shutil
from pathlib import Path
from types import ModuleType

import docs_runner
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data_pipelines", "models", "serving", "recsys")
START = ROOT / "docs/start.md"
ELSEWHERE = {START, ROOT / "docs/guides/extending.md"}  # tests/recsys/test_extensions.py follows the guide
PAGES = sorted(page for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if page not in ELSEWHERE)


@pytest.fixture(scope="session")
def after_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as "In five minutes" leaves it; the other pages go on from there."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as monkeypatch:
        docs_runner.run(START, folder, monkeypatch)
    return folder


@pytest.fixture(scope="session")
def public_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens and Criteo in the formats of their publishers, with rows that were made up."""
    folder, draw = tmp_path_factory.mktemp("public"), random.Random(3)
    ratings = [
        f"{draw.randint(1, 40)}::{draw.randint(1, 60)}::{draw.randint(1, 5)}::{978300000 + 3600 * n}"
        for n in range(2000)
    ]
    users = [
        f"{u}::{draw.choice('MF')}::{draw.choice([1, 18, 25])}::{draw.randint(0, 20)}::0{u:04}" for u in range(1, 41)
    ]
    genres = ["Drama", "Comedy", "Film-Noir"]
    movies = [f"{m}::Caf\u00e9 {m} (19{40 + m % 50})::{'|'.join(draw.sample(genres, 2))}" for m in range(1, 61)]
    (folder / "ml-1m").mkdir()
    for name, lines in (("ratings", ratings), ("users", users), ("movies", movies)):
        (folder / "ml-1m" / f"{name}.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (folder / "criteo").mkdir()
    with (folder / "criteo/train.txt").open("w") as file:
        for _ in range(2000):
            numbers = ["" if draw.random() < 0.3 else str(draw.randint(0, 500)) for _ in range(13)]
            ids = ["" if draw.random() < 0.1 else f"{draw.randint(0, 99):08x}" for _ in range(26)]
            file.write("\t".join([str(int(draw.random() < 0.25)), *numbers, *ids]) + "\n")
    return folder


def test_start_in_five_minutes(after_start: Path):
    assert (after_start / "scores").is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if not any(docs_runner.blocks(page)):
        pytest.skip("nothing to run on this page")
    folder = tmp_path / "work"
    shutil.copytree(request.getfixturevalue("after_start"), folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("RECSYS_DATA", str(request.getfixturevalue("public_data")))
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


def test_reference_has_every_public_name(reference: ModuleType):
    import recsys

    page = reference.api_page()
    for name in recsys.__all__:
        assert f"## `rs.{name}`" in page or not callable(getattr(recsys, name))
    train = page.partition("## `rs.train`")[2].partition("## `rs.Trainer`")[0]
    assert "rs.train(config, dataset, run, *, resume=False" in train
    assert "- `config`: The experiment." in train
    assert "- `DivergedError`:" in train
    assert "### `Dataset.open`" in page
    assert ":class:" not in page
    assert ":func:" not in page


def test_reference_has_every_verb(reference: ModuleType):
    page = reference.command_page()
    for verb in ("demo", "init", "prepare", "train", "evaluate", "export", "score", "serve", "ablate", "doctor"):
        assert f"## `recsys {verb}`" in page
