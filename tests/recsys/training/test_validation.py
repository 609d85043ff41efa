"""Metrics that are undefined, tasks of one class, users that are null: told, left out or refused; and stepping."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate, users_of
from recsys.metrics.grouped import gauc
from recsys.runs.checkpoints import read_tensors
from recsys.training.results import Result, TrainState
from recsys.training.train import train
from recsys.training.trainer import Trainer

ROWS = 1500
Made = tuple[ExperimentConfig, Dataset]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """``make(tasks, **train)``: a config and its data set, of a log whose last rows have no purchase."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(5)
    user, item, row = rng.integers(0, 40, ROWS), rng.integers(0, 20, ROWS), np.arange(ROWS)
    click = rng.random(ROWS) < np.where(user % 4 == item % 4, 0.5, 0.1)
    frame = pl.DataFrame({"time": 1_700_000_000 + 30 * row, "user": user, "item": item, "click": click.astype(int)})
    bought = click & (row < 0.7 * ROWS) & (rng.random(ROWS) < 0.3)
    users = pl.when(pl.col("user") % 3 > 0).then(pl.format("u{}", "user"))
    frame.with_columns(
        purchase=pl.Series(bought.astype(int)), user=users, nothing=pl.lit(0), price=pl.Series(rng.normal(size=ROWS))
    ).write_parquet(folder / "log.parquet")

    def made(tasks: dict[str, Any], **settings: Any) -> Made:
        content = {
            "data": {
                "log": str(folder / "log.parquet"),
                "time": "time",
                "user": "user",
                "tasks": tasks,
                "features": {"user": {"kind": "id"}, "item": {"kind": "id"}},
            },
            "model": {"dim": 4, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [8]}},
            "train": {"epochs": 5, "batch_size": 256, "patience": 1} | settings,
        }
        config = ExperimentConfig.model_validate(content)
        place = folder / "-".join(tasks)
        return config, Dataset.open(place) if place.exists() else prepare(config.data, place)

    return made


CLICK, BUY = {"click": {"column": "click"}}, {"buy": {"column": "purchase"}}


def test_a_task_of_one_class_in_valid_does_not_end_training(
    make: Callable[..., Made], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, dataset = make(CLICK | BUY)
    seen: list[float] = []
    with caplog.at_level(logging.WARNING):
        result = train(config, dataset, tmp_path / "run", on_eval=lambda step, value: seen.append(value))
    assert "leaves out AUC of task buy" in caplog.text
    assert "leaves out AUC of task buy" in result.notes[0]
    assert result.value == max(seen) == pytest.approx(result.valid["click"]["auc"])
    assert math.isnan(result.valid["buy"]["auc"])
    assert result.summary()["notes"] == list(result.notes)


@pytest.mark.parametrize(
    ("tasks", "settings", "said"),
    [
        (BUY, {}, "undefined on the valid split: all .* labels are 0. Nothing is left to monitor"),
        ({"none": {"column": "nothing"}}, {}, "task none: all .* labels of the train split are 0"),
        (
            {"price": {"column": "price", "kind": "regression"}},
            {"monitor": {"auc": 1}},
            "train.monitor.auc: there is no such metric; there are price/rmse",
        ),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused_before_training(
    make: Callable[..., Made], tmp_path: Path, tasks: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    config, dataset = make(tasks, **settings)
    with pytest.raises(UserError, match=said):
        train(config, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_regression_is_monitored_by_its_error(make: Callable[..., Made], tmp_path: Path) -> None:
    config, dataset = make({"price": {"column": "price", "kind": "regression"}})
    result = train(config, dataset, tmp_path / "run")
    assert result.value == pytest.approx(-result.valid["price"]["rmse"])
    assert "rmse: -1.0" in (tmp_path / "run" / "config.yaml").read_text()


def test_rows_of_a_null_user_are_in_no_group(make: Callable[..., Made], tmp_path: Path) -> None:
    config, dataset = make(CLICK, epochs=1)
    users = users_of(dataset, "test")
    assert users is not None
    assert (users < 0).any()
    train(config, dataset, tmp_path / "run")
    measured = evaluate(tmp_path / "run", dataset, "test", draws=5)
    known = measured.predictions.filter(pl.col("user").is_not_null())
    codes = known["user"].rank("dense").to_numpy()
    alone = gauc(known["click:label"].to_numpy(), known["click:logit"].to_numpy(), codes)
    assert measured.tasks["click"]["gauc"] == pytest.approx(alone)


def test_evaluations_that_are_nan_do_not_count(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset = make(CLICK, epochs=4)
    with Trainer(config, dataset, tmp_path / "run") as trainer:
        values = iter([0.5, math.nan, math.nan, 0.6])
        monkeypatch.setattr(type(trainer._validation.monitor), "value", lambda self, tasks: next(values))
        result = trainer.fit()
    assert (result.stopped, result.value, result.best_step) == ("epochs", 0.6, result.steps)
    assert sum("is NaN at step" in note for note in result.notes) == 2


def test_steps_by_hand_are_the_steps_of_fit(make: Callable[..., Made], tmp_path: Path) -> None:
    config, dataset = make(CLICK, epochs=1)
    whole = train(config, dataset, tmp_path / "fit")
    with Trainer(config, dataset, tmp_path / "hand") as trainer:
        losses = [trainer.train_step(batch) for batch in trainer.loader]
        metrics = trainer.evaluate()
        result = trainer.finish()
    assert len(losses) == result.steps == whole.steps
    assert metrics == result.valid == whole.valid
    ours, theirs = (read_tensors(tmp_path / run / "checkpoints" / "final", "") for run in ("hand", "fit"))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_results_and_states_of_earlier_versions_are_read() -> None:
    fields = {"run": "r", "steps": 3, "best_step": 3, "stopped": "epochs", "seconds": 1.0, "samples_per_s": 2.0}
    result = Result.model_validate(fields | {"valid": {"click": {"auc": None}}, "value": -math.inf})
    assert result.value is None
    assert math.isnan(result.valid["click"]["auc"])
    position = {"step": 7, "epoch": 1, "best_step": 0, "best_value": -math.inf, "worse": 1, "loss_mean": 0.5}
    state = TrainState.from_checkpoint({"position": position | {"losses": []}})
    assert (state.step, state.best_value, state.evaluations_without_improvement) == (7, None, 1)
    assert TrainState.from_checkpoint({"train_state": state.state_dict()}) == state
