"""The examples in the docstrings of ``import recsys as rs`` run, on the log and the config of a small experiment."""

import doctest
import inspect
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from data_pipelines import extensions
from models.layers.interactions import InteractionConfig
from models.sparsity import config as levers
from models.tables import poolings
from recsys.metrics import registry
from recsys.trials import engines

NAMES = [name for name in rs.__all__ if name != "__version__"]
FIRST = ["prepare", "train", "export"]
"""Examples that make what the others read."""
CONFIG = """
name: clicks
data:
  log: clicks.csv
  time: time
  user: reader
  tasks: {clicked: {column: clicked}}
  features:
    reader: {kind: id}
    article: {kind: id}
    topics: {kind: bag, delimiter: "|"}
    price: {kind: number, transform: log1p}
    read: {kind: history, of: [article], where: "clicked = 1", last: 5}
model: {dim: 8, tower: {kind: mlp, hidden: [16]}}
train: {epochs: 1, batch_size: 64, eval_batch_size: 64}
"""


@contextmanager
def in_this_process(*, jobs: int | None = None, threads: int = 1) -> Iterator[engines.Engine]:
    """An engine of trials that starts no processes."""

    def submit(call: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(call())
        return future

    yield engines.Engine(1, threads, submit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of all examples: a log, a config, a data set, a run and an artifact."""
    folder, draw, rows = tmp_path_factory.mktemp("examples"), np.random.default_rng(1), 600
    article = draw.integers(0, 30, rows)
    frame = pl.DataFrame(
        {
            "time": 1_700_000_000 + 600 * np.arange(rows),
            "reader": [f"r{n}" for n in np.sort(draw.permutation(np.arange(rows) % 12))[draw.permutation(rows)]],
            "article": [f"a{n}" for n in article],
            "topics": [["news", "news|sport", "film"][n % 3] for n in article],
            "price": draw.lognormal(1, 0.5, rows).round(2),
            "clicked": (draw.random(rows) < 0.1 + 0.2 * (article % 4)).astype(int),
        }
    )
    frame.write_csv(folder / "clicks.csv")
    (folder / "experiment.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(engines, "processes", in_this_process)
        patch.setattr("recsys.ablation.ablate.processes", in_this_process)
        patch.setattr("recsys.ablation.ablate.write_study", lambda study, findings, out: None)  # seconds of drawing
        for name in FIRST:
            run(name)
        yield folder


def run(name: str) -> None:
    """Run the examples in the docstring of one public name."""
    thing = getattr(rs, name)
    names = vars(sys.modules[thing.__module__]) | {"rs": rs, "Path": Path, "np": np, "pl": pl, "torch": torch}
    parser, output = doctest.DocTestParser(), []
    examples = parser.get_doctest(inspect.getdoc(thing) or "", dict(names), name, inspect.getsourcefile(thing), None)
    assert examples.examples, f"rs.{name} has no example"
    with pytest.MonkeyPatch.context() as patch:  # what an example registers is forgotten
        patch.setattr(extensions, "_loaded", [])
        patch.setattr(registry, "_METRICS", dict(registry._METRICS))
        patch.setattr(levers, "_REGISTERED", dict(levers._REGISTERED))
        patch.setattr(poolings, "_POOLINGS", dict(poolings._POOLINGS))
        patch.setattr(InteractionConfig, "_registered", dict(InteractionConfig._registered))
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=output.append)
    assert not result.failed, "".join(output)
    assert not any(doctest.SKIP in example.options for example in examples.examples), f"rs.{name} skips an example"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FIRST])
def test_example(name: str, folder: Path) -> None:
    if name == "mlflow_model":
        pytest.importorskip("mlflow.pyfunc", reason="MLflow is not installed")
    run(name)


def test_examples_of_the_whole_path(folder: Path) -> None:
    """Their examples have been run, in this order, for the others."""
    assert all((folder / made / "manifest.json").is_file() for made in ("dataset", "run", "artifact"))
