"""Events that are delivered twice."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from past_examples import keyed_config, keyed_log, write_random_artifact

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.past.state import State
from serving.batch.score import score


def test_a_day_delivered_twice_is_counted_once(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [row % 3 for row in range(60)], "t": [10**9 + row for row in range(60)], "y": [0, 1] * 30})
    log[:40].write_parquet(tmp_path / "monday.parquet")
    log[30:].write_parquet(tmp_path / "overlap.parquet")
    config = {
        "log": str(tmp_path / "monday.parquet"),
        "time": "t",
        "tasks": {"y": {"column": "y"}},
        "features": {"u": {"kind": "id"}, "n": {"kind": "statistic", "measure": "count", "by": ["u"]}},
    }
    state = prepare(DataConfig.model_validate(config), tmp_path / "dataset").state
    assert state is not None
    overlap = str(tmp_path / "overlap.parquet")
    with pytest.raises(UserError, match="has 10 events at or before"):
        state.update(overlap, tmp_path / "refused", late="refuse")
    assert not (tmp_path / "refused").exists()
    with pytest.warns(Notice, match="10 events"):
        once = state.update(overlap, tmp_path / "once", late="drop")
    frame = once.frame("n")
    assert frame.select(pl.col("before") + pl.col("at")).to_series().to_list() == [20, 20, 20]
    again = once.update(str(tmp_path / "monday.parquet"), tmp_path / "again", late="count").frame("n")
    assert again.select(pl.col("before") + pl.col("at")).sum().item() == 100


def counted(state: State) -> int:
    return int(state.frame("n").select(pl.col("before") + pl.col("at")).sum().item())


def test_an_event_key_tells_late_events_from_repeated_ones(tmp_path: Path) -> None:
    first = [*range(0, 40, 2), 38, 38]
    keyed_log(first).write_parquet(tmp_path / "first.parquet")
    with pytest.warns(Notice, match="2 events were delivered twice"):
        dataset = prepare(keyed_config(tmp_path / "first.parquet"), tmp_path / "dataset")
    assert (dataset.splits["train"], dataset.profile["duplicates"]) == (20, 2)
    state = dataset.state
    assert state is not None
    assert counted(state) == 20
    # 36 and 38 again, 37 late but new, 39 and 40 new.
    keyed_log([36, 37, 38, 39, 39, 40]).write_parquet(tmp_path / "second.parquet")
    with pytest.warns(Notice, match="3 events were delivered twice"):
        second = state.update(str(tmp_path / "second.parquet"), tmp_path / "second", late="refuse")
    assert counted(second) == 23
    with pytest.warns(Notice, match="6 events were delivered twice"):
        again = second.update(str(tmp_path / "second.parquet"), tmp_path / "again", late="refuse")
    assert counted(again) == 23
    with pytest.warns(Notice, match="3 events were delivered twice"):
        extended = prepare(
            keyed_config(tmp_path / "first.parquet"),
            tmp_path / "extended",
            log=str(tmp_path / "second.parquet"),
            extend=dataset.path,
        )
    assert extended.splits["train"] == 3
    assert extended.state is not None
    assert counted(extended.state) == 23
    # Keys further back than the window are forgotten: such events are late.
    keyed_log([2, 3, 41]).write_parquet(tmp_path / "third.parquet")
    with pytest.raises(UserError, match=r"has 2 events at or before .* `--late drop`"):
        second.update(str(tmp_path / "third.parquet"), tmp_path / "refused", late="refuse")
    assert counted(second.update(str(tmp_path / "third.parquet"), tmp_path / "third", late="drop")) == 24


def test_what_is_extended_is_counted_once(tmp_path: Path) -> None:
    keyed_log(list(range(30))).write_parquet(tmp_path / "first.parquet")
    keyed_log(list(range(20, 50))).write_parquet(tmp_path / "second.parquet")
    config = keyed_config(tmp_path / "first.parquet", event_key=[])
    first = prepare(config, tmp_path / "dataset")
    arguments = {"log": str(tmp_path / "second.parquet"), "extend": first.path}
    with pytest.raises(UserError, match="has 10 events at or before"):
        prepare(config, tmp_path / "refused", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "refused").exists()
    with pytest.warns(Notice, match="10 events"):
        dropped = prepare(config, tmp_path / "dropped", late="drop", **arguments)  # type: ignore[arg-type]
    assert dropped.state is not None
    assert (counted(dropped.state), dropped.splits["train"]) == (50, 20)
    with pytest.raises(UserError, match=r"first\.parquet: every event was counted before, so there is nothing to add"):
        prepare(config, tmp_path / "empty", log=config.log, extend=tmp_path / "dropped", late="drop")
    both = prepare(config, tmp_path / "both", late="count", **arguments).state  # type: ignore[arg-type]
    assert both is not None
    assert counted(both) == 60


@pytest.mark.parametrize("call", ["_remove", "exchanged"])
def test_an_update_in_place_is_the_old_state_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Killed before the exchange or right after it: the events are counted once when the update runs again."""
    keyed_log(list(range(30))).write_parquet(tmp_path / "first.parquet")
    keyed_log(list(range(30, 40))).write_parquet(tmp_path / "second.parquet")
    config = keyed_config(tmp_path / "first.parquet", event_key=[])
    shutil.copytree(prepare(config, tmp_path / "dataset").path / "state", tmp_path / "state")

    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    second = str(tmp_path / "second.parquet")
    with monkeypatch.context() as patched:
        patched.setattr(f"data_pipelines.disk.exchange.{call}", killed)
        with pytest.raises(KilledError):
            State.open(tmp_path / "state").update(second, late="refuse")
    state = State.open(tmp_path / "state")
    if call == "exchanged":
        assert counted(state) == 30
        state = state.update(second, late="refuse")
    else:
        with pytest.raises(UserError, match="has 10 events"):
            state.update(second, late="refuse")
    assert counted(State.open(tmp_path / "state")) == 40
    assert not list(tmp_path.glob(".state.unfinished.*"))


def test_a_job_reads_the_past_from_any_state_of_its_features(tmp_path: Path) -> None:
    keyed_log(list(range(30))).write_parquet(tmp_path / "first.parquet")
    keyed_log(list(range(25, 40))).write_parquet(tmp_path / "second.parquet")
    pl.DataFrame({"u": [1, 2], "t": [10**9 + 50] * 2}).write_parquet(tmp_path / "rows.parquet")
    dataset = prepare(keyed_config(tmp_path / "first.parquet", event_key=[]), tmp_path / "dataset")
    artifact = write_random_artifact(dataset, tmp_path / "artifact")
    assert dataset.state is not None
    second, rows = str(tmp_path / "second.parquet"), str(tmp_path / "rows.parquet")
    with pytest.warns(Notice):
        dataset.state.update(second, tmp_path / "state", late="drop")
    with pytest.raises(UserError, match="has 5 events"):
        score(artifact, rows, tmp_path / "refused", events=second)
    with pytest.warns(Notice):
        score(artifact, rows, tmp_path / "events", events=second, late="drop")
    score(artifact, rows, tmp_path / "own")
    score(artifact, rows, tmp_path / "stated", state=tmp_path / "state")
    events, own, stated = (pl.read_parquet(tmp_path / name / "*.parquet") for name in ("events", "own", "stated"))
    assert events.equals(stated)
    assert not events.equals(own)
    with pytest.raises(UserError, match=r"other terms|another job|made"):
        score(artifact, rows, tmp_path / "own", state=tmp_path / "state")
    other = keyed_config(
        tmp_path / "first.parquet",
        features={"u": {"kind": "id"}, "n": {"kind": "statistic", "measure": "count", "by": ["u"], "window": 9}},
    )
    prepare(other, tmp_path / "other")
    with pytest.raises(UserError, match="does not hold 'n' as"):
        score(artifact, rows, tmp_path / "mismatch", state=tmp_path / "other" / "state")
