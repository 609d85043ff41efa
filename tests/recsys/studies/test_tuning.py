"""A search finds the better value, goes on after it was stopped, and refuses what it cannot search."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.studies import tuning
from recsys.studies.journal import open_search, optuna_library
from recsys.studies.tuning import tune
from recsys.training.faults import DivergedError
from recsys.trials.engines import Engine, processes

pytest.importorskip("optuna")


@pytest.fixture
def content(tiny_data: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": tiny_data,
        "model": {"dim": 4, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [8]}},
        "train": {"epochs": 1, "batch_size": 400},
        "tune": {
            "trials": 3,
            "space": {
                "train.tables.learning_rate": {"low": 0.001, "high": 0.5, "log": True},
                "model.tower.hidden": {"choices": [[4], [8, 8]]},
            },
        },
    }


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = ExperimentConfig.model_validate({"data": tiny_data})
    return prepare(config.data, tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with processes(jobs=1) as started:
        yield started


def written(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_search_goes_on_where_it_stopped(
    content: dict[str, Any], dataset: Dataset, engine: Engine, tmp_path: Path
) -> None:
    def stop(trials: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(written(content, tmp_path), dataset, tmp_path / "study", engine, report=stop)
    tuned = tune(written(content, tmp_path), dataset, tmp_path / "study", engine)
    assert tuned.trials == 3
    trials = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert trials["trial"].to_list() == [0, 1, 2]
    assert tuned.value == trials["value"].max()
    assert trials["train.tables.learning_rate"].n_unique() == 3
    best = load_config(tuned.best)
    assert best.train.tables.learning_rate == tuned.chosen["train.tables.learning_rate"]
    assert list(best.model.tower.hidden) == tuned.chosen["model.tower.hidden"]


def test_trials_that_diverge_do_not_end_a_search(
    content: dict[str, Any], dataset: Dataset, engine: Engine, tmp_path: Path
) -> None:
    content["train"]["dense"] = {"optimizer": "sgd"}
    content["tune"] = {"trials": 4, "space": {"train.dense.learning_rate": {"choices": [0.01, 1e30]}}}
    found = tune(written(content, tmp_path), dataset, tmp_path / "study", engine)
    trials = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert found.chosen == {"train.dense.learning_rate": 0.01}
    assert set(trials["state"]) == {"complete", "pruned"}

    content["tune"]["space"] = {"train.dense.learning_rate": {"choices": [1e30]}}
    with pytest.raises(UserError, match=r"every trial diverged or was stopped early; search other .* tune\.space"):
        tune(written(content, tmp_path), dataset, tmp_path / "hopeless", engine)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({}, "tune.space is empty"),
        ({"train.dense.rate": {"low": 0.1, "high": 0.2}}, "unknown key train.dense.rate"),
        ({"train.epochs": {"low": 3, "high": 2}}, "low .3. must be below high"),
        ({"train.epochs": {"low": 3}}, "either `low` and `high`, or `choices`"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    content: dict[str, Any], dataset: Dataset, engine: Engine, tmp_path: Path, space: dict[str, Any], sentence: str
) -> None:
    config = written(content | {"tune": {"space": space}}, tmp_path)
    with pytest.raises(UserError, match=sentence):
        tune(config, dataset, tmp_path / "study", engine)
    assert not (tmp_path / "study").exists()


def test_another_config_is_not_mixed_into_a_search(
    content: dict[str, Any], dataset: Dataset, engine: Engine, tmp_path: Path
) -> None:
    content["tune"]["trials"] = 1
    tune(written(content, tmp_path), dataset, tmp_path / "study", engine)
    with pytest.raises(UserError, match="another config"):
        tune(written(content | {"seed": 5}, tmp_path), dataset, tmp_path / "study", engine)


@pytest.mark.parametrize("name", ["search.json", "journal.log"])
def test_a_damaged_search_is_told(
    content: dict[str, Any], dataset: Dataset, engine: Engine, tmp_path: Path, name: str
) -> None:
    content["tune"]["trials"] = 1
    tune(written(content, tmp_path), dataset, tmp_path / "study", engine)
    file = tmp_path / "study" / name
    file.write_bytes(b"?" + file.read_bytes())
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        tune(written(content, tmp_path), dataset, tmp_path / "study", engine)


def test_a_trial_without_a_value_has_failed_and_is_never_the_best(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(call: Callable[[], Any]) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(call())
        return done

    monkeypatch.setattr(tuning, "train", lambda *arguments, **options: SimpleNamespace(value=None))
    with pytest.raises(UserError, match=r"no evaluation gave train\.monitor a finite value"):
        tune(written(content, tmp_path), dataset, tmp_path / "study", Engine(1, 1, submit))
    trials = pl.read_parquet(tmp_path / "study" / "trials.parquet")
    assert trials["state"].to_list() == ["fail"] * 3
    assert not (tmp_path / "study" / "best.yaml").exists()


def test_the_configs_own_values_are_first_also_after_a_kill_and_the_budget_ends_a_search(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(call: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(call())
        return future

    here, killed = Engine(1, 1, submit), []

    def train(config: ExperimentConfig, *rest: Any, **more: Any) -> Any:
        if not killed:
            killed.append(config)
            raise KeyboardInterrupt
        return SimpleNamespace(value=0.5)

    monkeypatch.setattr(tuning, "train", train)
    content["train"]["tables"] = {"learning_rate": 0.02}
    content["model"]["tower"]["hidden"] = [8, 8]
    content["tune"] |= {"include_config": True, "trials": 50, "minutes": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        tune(written(content, tmp_path), dataset, tmp_path / "study", here)
    assert tune(written(content, tmp_path), dataset, tmp_path / "study", here).trials == 1
    content["tune"] |= {"minutes": 5.0, "trials": 3}
    found = tune(written(content, tmp_path), dataset, tmp_path / "study", here)
    trials = pl.read_parquet(tmp_path / "study" / "trials.parquet").filter(pl.col("state") == "complete")
    own = {"train.tables.learning_rate": "0.02", "model.tower.hidden": "[8, 8]"}
    assert (found.trials, found.own_value) == (3, 0.5)
    assert trials.select(*own).row(0, named=True) == own  # tried once, and not again
    assert len(trials.filter(pl.col("train.tables.learning_rate") == "0.02")) == 1

    content["train"]["tables"] = {"learning_rate": 0.9}
    with pytest.raises(UserError, match=r"tables.learning_rate is 0.9, which is not in tune.space"):
        tune(written(content, tmp_path), dataset, tmp_path / "other", here)


def _here(call: Callable[[], Any]) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(call())
    return future


def test_trials_with_batches_of_other_sizes_are_compared_after_the_same_part_of_an_epoch(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def train(config: ExperimentConfig, data: Dataset, run: Path, *, on_eval: Callable[[int, float], None]) -> Any:
        steps = math.ceil(data.splits["train"] / config.train.batch_size)
        sizes.append(config.train.batch_size)
        for epoch in (1, 2):
            on_eval(epoch * steps, 0.5)
        return SimpleNamespace(value=0.5)

    monkeypatch.setattr(tuning, "train", train)
    content["tune"] = {"trials": 6, "space": {"train.batch_size": {"choices": [7, 50, 400]}}}
    tune(written(content, tmp_path), dataset, tmp_path / "study", Engine(1, 1, _here))
    search = open_search(optuna_library(), tmp_path / "study", load_config(tmp_path / "config.yaml").name)
    assert len(set(sizes)) > 1
    assert [list(trial.intermediate_values) for trial in search.trials] == [[100, 200]] * 6


def test_trials_that_diverge_after_an_evaluation_are_not_the_best(
    content: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []

    def train(*_: Any, on_eval: Callable[[int, float], None]) -> Any:
        on_eval(1, 0.9)
        raise DivergedError("the loss became 1e+30 at step 2: lower the rate.")

    monkeypatch.setattr(tuning, "train", train)
    with pytest.raises(UserError, match="every trial diverged or was stopped early"):
        tune(
            written(content, tmp_path),
            dataset,
            tmp_path / "study",
            Engine(1, 1, _here),
            report=lambda _, note: notes.append(note),
        )
    assert notes[0].startswith("trial 0: the loss became 1e+30 at step 2 after ")
    assert notes[0].endswith("; none has ended well")


def test_an_interruption_ends_trials_that_are_running_and_no_others(engine: Engine) -> None:
    assert engine.submit(partial(pow, 2, 3)).result() == 8
    running = []

    def stop_after_a_start() -> None:
        with processes(jobs=1) as started:
            running.append(started.submit(partial(time.sleep, 3600)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after_a_start()
    assert running[0].done()
    assert engine.submit(partial(pow, 2, 3)).result() == 8
