"""Seven days of the daily road: killed in every step, refused, bad, partly late, delivered twice, and ordinary ones.

A fixture runs the first six once. Tests look at what they left, and the last test runs the seventh by the command.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from data_pipelines.past.state import State
from recsys.cli import app
from recsys.config.experiment import load_config
from recsys.daily.daily import run_day
from recsys.daily.history import LEDGER, Day, History
from serving.artifact.artifact import Artifact
from serving.http.jobs import JobStore

ROWS, FIRST, DAY = 400, 1_700_006_400, 86_400
LATE = 3


class _Killed(BaseException):
    pass


def day_of(number: int, *, flipped: bool = False) -> pl.DataFrame:
    """Rows of one day: clicks depend on the item, and every day has items of its own.

    Args:
        flipped: All but the test rows have the opposite label, so what is learned from them is wrong for the test rows.
    """
    rng = np.random.default_rng(number)
    user, item = rng.integers(0, 12, ROWS), rng.integers(0, 8, ROWS)
    click = (rng.random(ROWS) < np.where(item % 2 == 0, 0.9, 0.1)) ^ (flipped & (np.arange(ROWS) < 0.7 * ROWS))
    names = [f"new-{number}" if rng.random() < 0.05 else f"item-{i}" for i in item]
    times = FIRST + number * DAY + np.sort(rng.integers(0, DAY, ROWS))
    return pl.DataFrame({"user": user, "item": names, "time": times, "click": click.astype(np.int64)})


BAD_DAYS: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], str]] = {
    "empty": (lambda day: day.clear(), "holds no rows"),
    "without a column": (lambda day: day.drop("item"), "item"),
    "mostly unreadable": (lambda day: day.with_columns(pl.lit(7).alias("click")), "max_quarantined|refused"),
    "spelled differently": (lambda day: day.with_columns(item="a" + pl.col("item")), "daily.max_unknown"),
    "late": (lambda day: day.with_columns(pl.col("time") - 2 * DAY), "daily.max_late"),
    "too short": (lambda day: day.head(1), "data.split.test|train"),
}


@dataclass
class Road:
    """A folder of the daily road, its config, and the logs of its days."""

    root: Path
    killed_in: list[str] = field(default_factory=list)
    repeated: list[tuple[Day, bool]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.root / "road"

    def log(self, number: int, frame: pl.DataFrame | None = None) -> str:
        path = self.root / f"day-{number}.parquet"
        if frame is not None or not path.exists():
            (day_of(number) if frame is None else frame).write_parquet(path)
        return str(path)

    def run(self, log: str, *overrides: str, say: Callable[[str], None] = lambda step: None) -> tuple[Day, bool]:
        with History.open(self.folder) as history:
            return run_day(load_config(self.root / "config.yaml", overrides), history, log, say=say)

    def files(self) -> dict[str, bytes | str]:
        """Everything in the folder but its lock: the content of ledgers, links, and sizes of other files."""
        found: dict[str, bytes | str] = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink():
                found[name] = os.readlink(path)
            elif path.is_file() and name != ".lock":
                found[name] = path.read_bytes() if name == LEDGER else str(path.stat().st_size)
        return found

    @property
    def days(self) -> list[Day]:
        return [Day.model_validate_json(line) for line in (self.folder / LEDGER).read_bytes().splitlines()]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """The road after six days.

    1 is ordinary. 2 is killed in every step. The model of 3 is refused. 4 comes damaged first, and is killed when old
    days are removed. 5 has a few rows of day 4. 6 is delivered twice.
    """
    road = Road(tmp_path_factory.mktemp("daily"))
    config: dict[str, Any] = {
        "name": "tiny",
        "data": {
            "log": "unused.parquet",
            "time": "time",
            "user": "user",
            "tasks": {"click": {"column": "click"}},
            "split": {"by": "time", "valid": 0.1, "test": 0.3},
            "keys": ["user", "item"],
            "features": {
                "user": {"kind": "id"},
                "item": {"kind": "id"},
                "clicks": {"kind": "statistic", "by": ["user"], "of": "click", "measure": "rate"},
                "seen": {"kind": "statistic", "by": ["user"], "measure": "count"},
                "recent": {"kind": "history", "of": ["item"], "last": 3},
            },
        },
        "model": {"dim": 8, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [8]}},
        "train": {
            "epochs": 1,
            "batch_size": 12,
            "device": "cpu",
            "dense": {"learning_rate": 0.01},
            "tables": {"learning_rate": 0.2},
        },
        "export": {"sample": 1000},
    }
    (road.root / "config.yaml").write_text(yaml.safe_dump(config))
    day, new = road.run(road.log(1))
    assert new
    assert day.switched
    _kill_in_every_step(road, road.log(2))
    road.run(road.log(3, day_of(3, flipped=True)))
    with pytest.raises(UserError, match=r"daily\.max_unknown"):
        road.run(road.log(4, BAD_DAYS["spelled differently"][0](day_of(4))))
    _kill_in_every_step(road, road.log(4, day_of(4)))
    road.run(road.log(5, pl.concat([day_of(4).tail(LATE), day_of(5)])))
    copy = road.root / "again.parquet"
    for log in (road.log(6), str(copy)):
        road.repeated.append(road.run(log))
        copy.write_bytes(Path(road.log(6)).read_bytes())
    return road


def _kill_in_every_step(road: Road, log: str) -> None:
    """Run a day until it is done, killed as each step begins for the first time."""

    def kill_at_new_steps(step: str) -> None:
        if step not in road.killed_in:
            road.killed_in.append(step)
            raise _Killed

    for _ in range(20):
        try:
            road.run(log, say=kill_at_new_steps)
            return
        except _Killed:
            continue
    raise AssertionError("the day never ended")


def test_a_day_that_is_killed_in_every_step_is_done_once(road: Road) -> None:
    assert road.killed_in == [
        "reading the log",
        "preparing the data set",
        "checking the day",
        "training",
        "exporting",
        "comparing",
        "bringing the past forward",
        "recording the day",
        "switching",
        "removing old days",
    ]
    assert [day.number for day in road.days] == [1, 2, 3, 4, 5, 6]
    second = road.days[1]
    assert second.switched
    assert second.metrics["artifact"] > 0.7
    assert Dataset.open(road.folder / "days/0002/dataset").manifest.meta["extends"] == (
        Dataset.open(road.folder / "days/0001/dataset").manifest.fingerprint
    )
    run = load_config(road.folder / "days/0002/run/config.yaml")
    assert Path(run.train.start) == (road.folder / "days/0001/run").resolve()


def test_a_worse_model_is_refused_and_the_earlier_one_gets_the_past_of_the_day(road: Road) -> None:
    third = road.days[2]
    assert not third.switched
    assert third.model == 2
    assert third.difference is not None
    assert third.difference.verdict == "worse"
    assert "worse than daily.max_worse (0.0) allows" in third.reasons[0]
    assert third.artifact == "days/0003/kept"
    current, second = Artifact.open(road.folder / third.artifact), Artifact.open(road.folder / "days/0002/artifact")
    assert current.model == second.model
    assert (current.path / "tables.safetensors").read_bytes() == (second.path / "tables.safetensors").read_bytes()
    assert current.state is not None
    assert State.open(current.state).latest == third.latest == int(day_of(3)["time"][-1]) * 1_000_000


def test_the_day_after_a_refused_model_starts_from_the_one_that_was_kept(road: Road) -> None:
    run, data = road.folder / "days/0004/run", Dataset.open(road.folder / "days/0004/dataset")
    assert load_config(run / "config.yaml").train.start.endswith("days/0002/run")
    assert data.manifest.meta["extends"] == Dataset.open(road.folder / "days/0003/dataset").manifest.fingerprint


def test_a_few_late_rows_are_used_and_counted(road: Road) -> None:
    assert [day.late for day in road.days] == [0, 0, 0, 0, LATE, 0]
    assert sum(road.days[4].rows.values()) == ROWS + LATE


def test_the_same_day_twice_is_one_day(road: Road) -> None:
    (first, new), (second, again) = road.repeated
    assert new
    assert not again
    assert first == second == road.days[5]
    assert os.readlink(road.folder / "current") == first.artifact


def test_the_past_of_the_current_artifact_has_every_row_of_every_day_once(road: Road) -> None:
    logs = [pl.read_parquet(road.log(number)) for number in range(1, 7)]
    expected = pl.concat(logs).group_by("user").len("seen").sort("user")
    state = Artifact.open(road.folder / "current").state
    assert state is not None
    found = State.open(state).attach(expected.select("user").lazy()).collect()["seen"]
    assert np.expm1(found.to_numpy()) == pytest.approx(expected["seen"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize("kind", BAD_DAYS)
def test_a_bad_day_leaves_everything_as_it_was(road: Road, kind: str) -> None:
    before, (spoil, said) = road.files(), BAD_DAYS[kind]
    with pytest.raises(UserError, match=said):
        road.run(road.log(90, spoil(day_of(7))))
    assert road.files() == before


def test_a_day_that_was_begun_comes_before_another(road: Road) -> None:
    before = road.files()

    def kill(step: str) -> None:
        if step == "preparing the data set":
            raise _Killed

    with pytest.raises(_Killed):
        road.run(road.log(7), say=kill)
    with pytest.raises(UserError, match=r"day-7.parquet was begun and not finished"):
        road.run(road.log(8))
    with pytest.raises(UserError, match="begun with another config"):
        road.run(road.log(7), "train.epochs=2")
    with History.open(road.folder) as history:
        history.discard()
    assert road.files() == before


def test_two_processes_do_not_share_a_folder(road: Road) -> None:
    with (
        History.open(road.folder),
        pytest.raises(UserError, match="another process works in"),
        History.open(road.folder),
    ):
        raise AssertionError


def test_a_line_that_a_kill_cut_short_is_no_day_and_a_damaged_ledger_is_refused(road: Road, tmp_path: Path) -> None:
    whole = (road.folder / LEDGER).read_bytes()
    (tmp_path / "days").mkdir()
    (tmp_path / LEDGER).write_bytes(whole + whole[:40])
    with History.open(tmp_path) as history:
        assert history.days == road.days
    assert (tmp_path / LEDGER).read_bytes() == whole
    assert os.readlink(tmp_path / "current") == road.days[-1].artifact
    (tmp_path / LEDGER).write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match="damaged"), History.open(tmp_path):
        raise AssertionError
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="holds something else"), History.open(tmp_path / "mine"):
        raise AssertionError


def test_the_command_does_the_seventh_day_scores_and_switches_a_service(road: Road, tmp_path: Path) -> None:
    road = Road(shutil.copytree(road.root, tmp_path / "copy", symlinks=True))  # other tests see six days
    day_of(8).drop("click").write_parquet(tmp_path / "input.parquet")
    jobs_db = f"sqlite:///{tmp_path / 'jobs.db'}"
    arguments = ["daily", road.root / "config.yaml", road.folder, "daily.keep=1", "--log", road.log(7), "--json"]
    arguments += ["--input", tmp_path / "input.parquet", "--output", tmp_path / "scores", "--jobs-db", jobs_db]
    for new in (True, False):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout.splitlines()[-1])
        assert (result["day"], result["new"], result["switched"], result["model"]) == (7, new, True, 7)
        assert result["scores"]["rows_out"] == ROWS
        assert result["latest"] == int(day_of(7)["time"][-1]) * 1_000_000
    assert "is finished already, as day 7: nothing has changed" in done.stderr
    assert len(pl.read_parquet(tmp_path / "scores/*.parquet")) == ROWS
    store, path = JobStore(jobs_db), (road.folder / "current").resolve()
    assert store.live() == "road-0007"
    registered = store.artifacts()["road-0007"]
    assert (registered.path, registered.fingerprint) == (str(path), Artifact.open(path).fingerprint)
    assert sorted(path.name for path in (road.folder / "days").iterdir()) == ["0007"]
    with pytest.raises(UserError, match="--input says what to score"):
        app(["daily", *map(str, arguments[1:6]), "--input", "x"], standalone_mode=False)
