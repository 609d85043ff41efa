"""One call from a log to an artifact: it continues wherever it was stopped, and says where the model stands."""

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from recsys.cli import app
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.studies import fit as fitting
from recsys.studies.fit import Fit, finished_fit, fit
from recsys.studies.search_space import search_space
from recsys.studies.tuning import Tuned
from recsys.trials.engines import Engine
from serving.artifact.artifact import Artifact

pytest.importorskip("optuna")


def _submit(call: Callable[[], Any]) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(call())
    return future


HERE = Engine(1, 1, _submit)
"""Runs trials in this process."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of a small model, and a space of two values."""

    def write_config(profile: Any) -> str:
        content = yaml.safe_load(fitting_starter(profile))
        content["model"] = {"dim": 4, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [8]}}
        content["train"] = {"epochs": 1, "batch_size": 400}
        return yaml.safe_dump(content)

    fitting_starter = fitting.starter_config
    monkeypatch.setattr(fitting, "starter_config", write_config)
    monkeypatch.setattr(fitting, "_MOST_TRIALS", 2)


class _Killed(BaseException):
    pass


def test_a_fit_that_is_killed_at_every_step_continues_to_the_end(small: None, tiny_log: Path, tmp_path: Path) -> None:
    folder, steps = tmp_path / "fit", []
    found: Fit | None = None

    def kill_at_new_steps(step: str) -> None:
        if step not in steps:
            steps.append(step)
            raise _Killed

    for _ in range(20):
        try:
            found = fit(str(tiny_log), folder, HERE, minutes=5, say=kill_at_new_steps)
            break
        except _Killed:
            assert finished_fit(str(tiny_log), folder, 5) is None
    assert found is not None
    searching = "searching for 5 minutes; the first trial is the config itself"
    assert {"inspecting the log", "preparing the data set", searching, "exporting"} <= set(steps)
    ended = [step for step in steps if step.startswith("trial ")]
    assert [step.split(":")[0] for step in ended] == ["trial 0", "trial 1"]
    assert all("best: " in step and " minutes" in step for step in ended)
    trials = pl.read_parquet(folder / "study" / "trials.parquet")
    assert trials["state"].to_list() == ["complete", "complete"]  # none was lost, none repeated
    own = load_config(folder / "config.yaml")
    assert float(trials["train.dense.learning_rate"][0]) == own.train.dense.learning_rate  # the config itself is first
    assert Artifact.open(folder / "artifact").card.name == own.name
    assert found.standing["valid"].against.keys() >= {"base_rate", "popularity", "linear"}
    assert (folder / "report.html").is_file()
    finished = finished_fit(str(tiny_log), folder, 5)
    assert finished is not None
    assert (finished.summary, finished.run, finished.chosen) == (found.summary, found.run, found.chosen)
    assert ("None of 2 trials" in found.search) == (found.changed == {})
    assert found.changed.items() <= found.chosen.items()
    again = CliRunner().invoke(app, ["fit", str(tiny_log), str(folder), "--minutes", "5", "--json"])
    assert "has finished; a larger --minutes than 5 continues it" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["summary"] == found.summary
    assert finished_fit(str(tiny_log), folder, 6) is None  # a larger budget continues
    with pytest.raises(UserError, match="is a fit of"):
        finished_fit("other.csv", folder, 5)


def test_two_fits_do_not_share_a_folder(small: None, tiny_log: Path, tmp_path: Path) -> None:
    def begin_a_second(step: str) -> None:
        if step == "preparing the data set":
            fit(str(tiny_log), tmp_path / "fit", HERE)

    with pytest.raises(UserError, match="another fit is running"):
        fit(str(tiny_log), tmp_path / "fit", HERE, say=begin_a_second)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert finished_fit("log.csv", tmp_path / "mine", 5) is None  # empty: a fit may begin here
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match="exists and is not a fit"):
        finished_fit("log.csv", tmp_path / "mine", 5)


def test_the_space_holds_the_configs_own_values(tiny_data: dict[str, Any]) -> None:
    for model in ({}, {"interaction": {"kind": "fm"}, "tower": {"kind": "mlp", "hidden": [7]}, "dim": 5}):
        config = ExperimentConfig.model_validate({"data": tiny_data, "model": model, "train": {"batch_size": 1}})
        content = config.model_dump(mode="json")
        for key, span in search_space(config).items():
            value: Any = content
            for name in key.split("."):
                value = value[name]
            assert span.has(value), key


def test_a_baseline_that_wins_is_the_first_thing_said() -> None:
    from recsys.evaluation.standing import Difference, Standing

    def against(difference: float) -> Standing:
        verdict = "worse" if difference < 0 else "better"
        figure = Difference(baseline=0.8, difference=difference, low=difference, high=difference, verdict=verdict)
        return Standing(split="valid", task="t", main="auc", against={"linear": {"auc": figure}}, hint="more epochs.")

    assert fitting._summary(against(-0.1)).startswith("A baseline wins on the valid split: linear has auc 0.8000")
    assert "more epochs" in fitting._summary(against(-0.1))
    assert fitting._summary(against(0.1)) == "On the valid split the model is better than linear (auc)."


def test_a_log_is_described_to_fit_as_to_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, side = tmp_path / "clicks.txt", tmp_path / "goods.csv"
    rows = [f"{row % 7};{row % 5};{row % 3 + 1};2024-01-{row % 28 + 1:02d}" for row in range(60)]
    log.write_text("\n".join(["who;what;stars;seen", *rows]))
    side.write_text("what,price\n" + "\n".join(f"{what},{what * 2.5}" for what in range(5)))
    options = ["--user", "who", "--item", "what", "--label", "stars", "--at-least", "3", "--time", "seen"]
    options += ["--format", '{kind: csv, delimiter: ";"}', "--side", str(side)]
    written = CliRunner().invoke(app, ["init", str(log), str(tmp_path / "init.yaml"), *options])
    assert written.exit_code == 0, written.output

    def stop(*_: object, **__: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(fitting, "prepare", stop)
    stopped = CliRunner().invoke(app, ["fit", str(log), str(tmp_path / "fit"), *options])
    assert str(stopped.exception) == "far enough"
    assert (tmp_path / "fit" / "config.yaml").read_text() == (tmp_path / "init.yaml").read_text()
    again = CliRunner().invoke(app, ["fit", str(log), str(tmp_path / "fit"), "--label", "seen"])
    assert "is used as it is: to read the log by other options, name another folder" in again.stderr


def test_the_result_says_whether_the_search_paid() -> None:
    def searched(value: float, own: float | None, trials: int = 4) -> str:
        found = Tuned(
            best=Path(), run=Path(), value=value, trials=trials, failed=0, chosen={"model.dim": 8}, own_value=own
        )
        return fitting._searched(found, 3, {"logloss": -1})

    assert searched(-0.2, -0.3) == (
        "The best of 4 trials has logloss 0.20000 on valid rows, the config itself logloss 0.30000."
    )
    assert searched(-0.3, -0.3).startswith("None of 4 trials was better on valid rows than the config itself")
    assert "the config itself did not end well" in searched(-0.3, None)
    assert searched(-0.3, -0.3, trials=1).startswith("3 minutes were enough for the config itself only")


def test_a_fit_that_is_stopped_says_how_to_continue(
    tiny_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fitting, "fit", stop)
    stopped = CliRunner().invoke(app, ["fit", str(tiny_log), str(tmp_path / "fit")])
    assert stopped.exit_code == 1
    assert stopped.stderr == "recsys: stopped; what is finished is kept, and the same command continues\n"
    assert signal.getsignal(signal.SIGTERM) == before
