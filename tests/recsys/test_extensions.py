"""Extensions: the recipes of docs/guides/extending.md, from a folder outside the packages, and what is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path

import docs_runner
import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

import recsys as rs
from data_pipelines import extensions
from data_pipelines.config.base import Family, extensions_meta
from data_pipelines.disk.storage import open_directory
from data_pipelines.files.base import FileFormat
from models.sparsity import config as levers
from models.tables import poolings
from recsys.cli import app
from recsys.metrics import registry
from recsys.runs.checkpoints import load_weights
from recsys.trials.code import source_files

GUIDE = docs_runner.ROOT / "docs/guides/extending.md"


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    """What the extensions of this file register is forgotten when its tests have ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extensions, "_loaded", [])
        patch.setattr(registry, "_METRICS", dict(registry._METRICS))
        patch.setattr(levers, "_REGISTERED", dict(levers._REGISTERED))
        patch.setattr(poolings, "_POOLINGS", dict(poolings._POOLINGS))
        for family in Family.__subclasses__():
            patch.setattr(family, "_registered", dict(family._registered))
        patch.setattr(sys, "path", list(sys.path))
        yield
        _unload()


def _unload() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "my_parts"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the guide was followed: a data set, a run, an artifact and scores that use all seven recipes."""
    folder, draw = tmp_path_factory.mktemp("extending"), np.random.default_rng(0)
    rows = 400
    article = draw.integers(0, 20, rows)
    frame = pl.DataFrame(
        {
            "time": 1_700_000_000 + 60 * np.arange(rows),
            "reader": [f"r{n}" for n in draw.integers(0, 12, rows)],
            "article": [f"a{n}" for n in article],
            "topics": ["news|" * n for n in article % 4],
            "clicked": (draw.random(rows) < 0.2 + 0.15 * (article % 4)).astype(int),
        }
    )
    frame.write_csv(folder / "clicks.csv")
    with pytest.MonkeyPatch.context() as patch:
        docs_runner.run(GUIDE, folder, patch)
        patch.chdir(folder)
        yield folder


@pytest.fixture
def folder(followed: Path) -> Path:
    """The same, with the extensions loaded, which a test before may have unloaded."""
    rs.load_extensions(["my_parts"])
    return followed


def test_a_feature_kind_encodes_rows(folder):
    encoded = rs.Dataset.open(folder / "extended.dataset").feature("train", "topics")
    assert sorted(encoded.unique()) == [0, 5, 10, 15]


def test_a_file_format_is_known_by_its_suffix(folder):
    assert ".orc" in FileFormat.kinds()["orc"].suffixes
    assert pl.read_parquet(folder / "extended.scores/*.parquet").height == 400


def test_an_interaction_and_a_pooling_are_parts_of_the_ranker(folder):
    weights = load_weights(folder / "extended.run")
    assert weights.config.interaction.kind == "squares"
    assert weights.dense["histories.pools.history:read.rate"] != 0.1  # it was trained


def test_a_lever_acts_on_the_weights(folder):
    dense = load_weights(folder / "extended.run").dense["tower.layers.0.weight"]
    assert (dense == 0).any()
    assert dense[dense != 0].abs().min() >= 0.02


def test_a_metric_is_measured_and_monitored(folder):
    kept = pl.read_parquet(folder / "extended.run/metrics.parquet")
    assert "clicked/brier" in set(kept["metric"].unique())


def test_a_loss_is_what_training_minimises():
    """Against a plain loop over rows."""
    import torch

    from models.layers.losses import LossConfig, loss_of_labelled

    logits, labels = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([1.0, 0.0, float("nan")])
    loss = loss_of_labelled(LossConfig.parse({"kind": "focal", "gamma": 1.5}), logits, labels, None)
    chances = [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-2.0))]
    assert float(loss) == pytest.approx(np.mean([-((1 - p) ** 1.5) * np.log(p) for p in chances]), rel=1e-5)


@pytest.mark.parametrize("kind", ["dataset", "run", "artifact"])
def test_the_versions_of_what_is_needed_are_recorded(folder, kind):
    assert open_directory(folder / f"extended.{kind}", kind).meta["extensions"] == {"my_parts": "1.0"}


def test_a_module_that_nobody_named_is_recorded_by_its_own_name(folder, monkeypatch):
    monkeypatch.setattr(extensions, "_loaded", [])
    config = rs.load_config(folder / "extended.yaml", ["extensions=[my_parts.decay]"])
    assert extensions_meta(config.model) == {"extensions": {"my_parts.decay": "1.0", "my_parts.squares": "1.0"}}
    assert extensions_meta(rs.load_config(folder / "extended.yaml", ["model.pooling.read=mean"]).export) == {}


@pytest.mark.parametrize(
    "verb",
    [
        ["evaluate", "extended.run"],
        ["export", "extended.run", "other"],
        ["score", "extended.artifact", "clicks.orc", "others"],
        ["inspect", "extended.dataset"],
    ],
    ids=" ".join,
)
def test_what_is_stored_never_imports_its_extensions(folder, verb):
    _unload()
    result = CliRunner().invoke(app, verb)
    assert isinstance(result.exception, rs.UserError)
    assert "needs the extension my_parts: if you trust that module, name it with `--extension my_parts`" in str(
        result.exception
    )
    assert "my_parts" not in sys.modules


def test_a_stored_config_never_imports_its_extensions(folder):
    from recsys.config.experiment import stored_config

    _unload()
    with pytest.raises(rs.UserError, match=r"config\.yaml: extensions: the experiment needs the extension my_parts"):
        stored_config(folder / "extended.run/config.yaml")
    assert "my_parts" not in sys.modules
    assert rs.load_config(folder / "extended.run/config.yaml").extensions == ("my_parts",)


def test_another_version_is_a_notice(folder, monkeypatch):
    rs.load_extensions(["my_parts"])
    monkeypatch.setattr(sys.modules["my_parts"], "__version__", "2.0")
    with pytest.warns(UserWarning, match=r"version 1\.0 of the extension my_parts, and version 2\.0"):
        rs.Artifact.open(folder / "extended.artifact")


def test_trials_are_named_after_the_code_of_extensions(folder):
    rs.load_extensions(["my_parts"])
    files = source_files("my_parts")
    assert files["my_parts.focal"] == folder / "my_parts/focal.py"
    assert "polars" not in files


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("no-module", None, "'no-module' is not the name of a Python module"),
        ("../parts", None, "'../parts' is not the name of a Python module"),
        ("no_such_parts.more", None, "there is no module 'no_such_parts': install the package"),
        ("needy_parts", "import no_such_library", "needs another module .*no_such_library"),
        ("broken_parts", "def broken(:", "cannot be imported \\(SyntaxError"),
        ("raising_parts", "x = 1\nx / 0", "ZeroDivisionError: division by zero, line 2 of .*raising_parts.py"),
        ("ending_parts", "raise SystemExit(3)", "cannot be imported \\(SystemExit: 3"),
        (
            "taking_parts",
            "from typing import Literal\nimport recsys as rs\n"
            "from data_pipelines.features.kinds.base import FeatureConfig\n"
            "@rs.register\nclass Mine(FeatureConfig):\n    kind: Literal['id'] = 'id'\n",
            "the kind 'id' is taken",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_sentence(name, source, sentence, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(rs.UserError, match=sentence) as raised:
        rs.load_extensions([name])
    assert "\n" not in str(raised.value)
    assert name not in extensions.loaded()


def test_a_config_names_the_file_of_a_wrong_extension(tmp_path):
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump({"extensions": ["no_such_parts"], "data": {}}))
    with pytest.raises(rs.UserError, match=r"experiment\.yaml: extensions: there is no module 'no_such_parts'"):
        rs.load_config(config)
