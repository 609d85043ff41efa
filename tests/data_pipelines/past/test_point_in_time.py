"""Histories and statistics against a plain loop over the log, and the state against the whole log."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.past.state import State

FEATURES: dict[str, Any] = {
    "item": {"kind": "id"},
    "tags": {"kind": "bag"},
    "likes": {"kind": "history", "of": ["item", "tags"], "where": "rating >= 4", "last": 3, "age": True},
    "seen": {"kind": "history", "of": ["item"], "last": 2, "entity": "item"},
    "views": {"kind": "statistic", "measure": "count", "by": ["user"]},
    "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["user"], "smoothing": 5},
    "taste": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["user", "tags"], "smoothing": 2},
    "stars": {"kind": "statistic", "measure": "mean", "of": "rating", "by": ["item"], "smoothing": 1},
    "lately": {"kind": "statistic", "measure": "count", "by": ["user"], "window": 200},
    "again": {"kind": "recency", "by": ["user", "item"]},
    "fond": {"kind": "recency", "by": ["user", "tags"], "where": "rating >= 4"},
    "late_rate": {"kind": "statistic", "measure": "rate", "of": "buy", "by": ["user"], "smoothing": 5},
    "late_mean": {"kind": "statistic", "measure": "mean", "of": "buy", "by": ["item"], "window": 200},
    "bought": {"kind": "history", "of": ["item"], "where": "purchase = 1", "last": 3},
}
DELAY = 70
"""Seconds until it is known whether something was bought."""
PAST = ["likes.item", "likes.tags", "likes.age", "seen.item", "views", "rate", "taste", "stars", "lately"]
PAST += ["again", "fond", "late_rate", "late_mean", "bought.item"]


def config_of(log: Path) -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": str(log),
            "time": "time",
            "user": "user",
            "tasks": {"click": {"column": "click"}, "buy": {"column": "purchase", "label_delay": DELAY}},
            "split": {"by": "time", "valid": 0.2, "test": 0.2},
            "features": FEATURES,
        }
    )


def make_log(seed: int, rows: int = 120) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c", "é", ""]
    return pl.DataFrame(
        {
            "user": pl.Series(rng.integers(0, 6, rows)).set(pl.Series(rng.random(rows) < 0.05), None),
            "item": [f"i{i}" for i in rng.integers(0, 8, rows)],
            "tags": [[names[k] for k in rng.integers(0, 5, rng.integers(0, 4))] for _ in range(rows)],
            "time": 1_700_000_000 + rng.integers(0, 500, rows),
            "rating": rng.integers(1, 6, rows),
            "click": rng.integers(0, 2, rows),
            "purchase": rng.integers(0, 2, rows),
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )


def reference(log: pl.DataFrame) -> list[dict[str, Any]]:
    """What each row sees of the rows strictly earlier, by the definition."""
    empty_as_null = pl.col("tags").list.eval(pl.element().replace("", None))
    rows = list(log.with_columns(empty_as_null).iter_rows(named=True))
    expected = []
    for row in rows:
        past = sorted((r for r in rows if r["time"] < row["time"]), key=lambda r: r["time"])
        minutes = [r for r in rows if r["time"] // 60 < row["time"] // 60]
        click_prior = (sum(r["click"] for r in minutes) + 0.5) / (len(minutes) + 1)
        star_prior = sum(r["rating"] for r in minutes) / max(len(minutes), 1)
        mine = [r for r in past if r["user"] is not None and r["user"] == row["user"]]
        same = [r for r in past if r["item"] == row["item"]]
        likes = [r for r in mine if r["rating"] >= 4][-3:]
        rates = []
        for tag in set(row["tags"]) - {None} if row["user"] is not None else ():
            shared = [r["click"] for r in mine if tag in r["tags"]]
            rates.append((sum(shared) + 2 * click_prior) / (len(shared) + 2))
        rate = (sum(r["click"] for r in mine) + 5 * click_prior) / (len(mine) + 5)
        taste = sum(rates) / len(rates) if rates else click_prior
        fond = [0.0]
        for tag in set(row["tags"]) - {None} if row["user"] is not None else ():
            fond += [recency(row["time"], [r for r in mine if tag in r["tags"] and r["rating"] >= 4])]
        known = [r for r in mine if r["time"] < row["time"] - DELAY]
        purchases = [r["purchase"] for r in rows if r["time"] // 60 < (row["time"] - DELAY) // 60]
        buy_prior = (sum(purchases) + 0.5) / (len(purchases) + 1)
        late = (sum(r["purchase"] for r in known) + 5 * buy_prior) / (len(known) + 5)
        recent = [r["purchase"] for r in same if row["time"] - DELAY - 200 <= r["time"] < row["time"] - DELAY]
        buy_mean = sum(purchases) / max(len(purchases), 1)
        expected.append(
            {
                "again": recency(row["time"], [r for r in mine if r["item"] == row["item"]]),
                "fond": max(fond),
                "late_rate": math.log(late / (1 - late)),
                "late_mean": (sum(recent) + 20 * buy_mean) / (len(recent) + 20),
                "bought.item": [r["item"] for r in known if r["purchase"] == 1][-3:],
                "likes.item": [r["item"] for r in likes],
                "likes.tags": [r["tags"][0] if r["tags"] else None for r in likes],
                "likes.age": [int(math.log2(1 + row["time"] - r["time"])) for r in likes],
                "seen.item": [r["item"] for r in same[-2:]],
                "views": math.log1p(len(mine)),
                "rate": math.log(rate / (1 - rate))
                if row["user"] is not None
                else math.log(click_prior / (1 - click_prior)),
                "taste": math.log(taste / (1 - taste)),
                "stars": (sum(r["rating"] for r in same) + star_prior) / (len(same) + 1),
                "lately": math.log1p(len([r for r in mine if r["time"] >= row["time"] - 200])),
            }
        )
    return expected


def recency(now: int, past: list[dict[str, Any]]) -> float:
    return math.log1p(365 * 86400 / (now - max(r["time"] for r in past))) if past else 0.0


def prepared(log: pl.DataFrame, folder: Path, name: str = "dataset") -> Dataset:
    path = folder / f"{name}.parquet"
    log.write_parquet(path)
    return prepare(config_of(path), folder / name)


def past_of(dataset: Dataset) -> pl.DataFrame:
    """The past of every row of a data set, in the order of the log, in raw values as a state gives it."""
    return pl.concat([dataset.raw(split) for split in dataset.splits]).sort(":row").select(":row", *PAST)


def check(actual: pl.DataFrame, expected: list[dict[str, Any]]) -> None:
    for got, want in zip(actual.iter_rows(named=True), expected, strict=True):
        for name in PAST:
            wanted = want[name] if isinstance(want[name], list) else pytest.approx(want[name], rel=1e-5)
            assert got[name] == wanted, (got[":row"], name)


def test_past_is_what_was_strictly_earlier(tmp_path: Path) -> None:
    log = make_log(0)
    check(past_of(prepared(log, tmp_path)), reference(log))


@pytest.mark.parametrize("memory_rows", [1 << 20, 64, 16])
def test_parts_by_key_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_rows: int) -> None:
    log = make_log(1, 200)
    whole = past_of(prepared(log, tmp_path))
    monkeypatch.setattr("data_pipelines.disk.spill.PARTITION_ROWS", 16)
    monkeypatch.setattr("data_pipelines.disk.spill.MEMORY_ROWS", memory_rows)
    monkeypatch.setattr("data_pipelines.past.snapshots.MEMORY_ROWS", memory_rows)
    monkeypatch.setattr("data_pipelines.disk.spill.CHUNK_ROWS", 23)
    monkeypatch.setattr("data_pipelines.disk.by_row._READ_AHEAD", 99)
    monkeypatch.setattr("data_pipelines.dataset.prepare.CHUNK_ROWS", 23)
    parted = prepared(log, tmp_path, "parted")
    assert_frame_equal(past_of(parted), whole)
    later = make_log(2, 40).with_columns(pl.col("time") + 600)
    new = [State.open(path / "state").attach(later.lazy()).collect() for path in (tmp_path / "dataset", parted.path)]
    assert_frame_equal(*new)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), at=st.integers(0, 119), delete=st.booleans())
def test_later_rows_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int, at: int, delete: bool) -> None:
    log, folder = make_log(seed), tmp_path_factory.mktemp("leak")
    now = log["time"].sort()[at]
    before = prepared(log, folder, "before")
    if delete:
        later = log.filter(pl.col("time") <= now)
    else:
        changed = make_log(seed + 1).with_columns(time=log["time"] + (log["time"] > now).cast(pl.Int64) * 1000)
        later = pl.DataFrame(
            {name: pl.Series(log[name]).zip_with(log["time"] <= now, changed[name]) for name in log.columns}
        )
    after = past_of(prepared(later, folder, "after"))
    kept = log.with_row_index(":row").filter(pl.col("time") <= now).get_column(":row")
    old = past_of(before).filter(pl.col(":row").is_in(kept.implode()))
    new = after if delete else after.filter(pl.col(":row").is_in(kept.implode()))
    assert_frame_equal(old.drop(":row"), new.drop(":row"))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), at=st.integers(1, 118), steps=st.integers(0, 2))
def test_state_gives_what_the_whole_log_gives(
    tmp_path_factory: pytest.TempPathFactory, seed: int, at: int, steps: int
) -> None:
    """Also for rows at the time of the last event, and after updates in several steps."""
    folder = tmp_path_factory.mktemp("state")
    log = make_log(seed).sort("time", maintain_order=True)
    whole = past_of(prepared(log, folder, "whole"))
    cuts = np.linspace(max(10, at // 2), at if at > 10 else 10, steps + 1).astype(int)
    state = State.open(prepared(log[: cuts[0]], folder, "early").path / "state")
    for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
        log[start:stop].write_parquet(folder / f"{i}.parquet")
        state = state.update(str(folder / f"{i}.parquet"), folder / f"state{i}")
    latest = log["time"][: cuts[-1]].max()
    end = cuts[-1]
    while end < len(log) and log["time"][int(end)] == latest:
        end += 1
    # Rows right after the last event see all of it; those at its very time only what is strictly earlier.
    new = log[int(cuts[-1]) : int(end) + 1]
    attached = state.attach(new.lazy()).collect().select(PAST)
    if new["time"].n_unique() > 1:
        attached = attached[: len(new) - 1]
    assert_frame_equal(attached, whole[int(cuts[-1]) : int(cuts[-1]) + len(attached)].select(PAST), check_dtypes=False)


def test_loader_gathers_the_slices(tmp_path: Path) -> None:
    dataset = prepared(make_log(3, 300), tmp_path)
    raw = dataset.raw("train")
    encoded = dataset.encoder.encode(raw.lazy()).collect()
    for batch in Loader(dataset, "train", batch_size=32, shuffle=True):
        expected = encoded[batch.rows.numpy()]
        for name in ("likes.item", "likes.tags", "likes.age", "seen.item", "bought.item"):
            bags = batch.sparse[name].to_dense()
            assert [bag.tolist() for bag in bags] == expected[name].to_list()
        for i, feature in enumerate(dataset.schema.dense):
            np.testing.assert_array_equal(batch.dense[:, i].numpy(), expected[feature.name].to_numpy())


def test_a_request_carries_its_own_history(tmp_path: Path) -> None:
    dataset = prepared(make_log(4), tmp_path)
    state = State.open(dataset.path / "state")
    row = {"user": 1, "item": "i1", "tags": ["a"], "seen.item": ["i5", "new"]}
    attached = state.attach(pl.DataFrame([row]).lazy())
    assert attached.collect()["seen.item"].to_list() == [["i5", "new"]]
    ids = dict(dataset.encoder.vocabulary("item").select("value", "id").iter_rows())
    assert dataset.encoder.encode(attached).collect()["seen.item"].to_list() == [[ids["i5"], 1]]


def named(dataset: Dataset, split: str) -> pl.DataFrame:
    """Encoded rows of a split in their order: statistics as they are, histories as values (``None``: unknown)."""
    values = {
        table: dict(dataset.encoder.vocabulary(table).select("id", "value").iter_rows()) for table in ("item", "tags")
    }
    columns: dict[str, list[Any]] = {name: [] for name in PAST}
    for batch in Loader(dataset, split, batch_size=50):
        for name in ("likes.item", "likes.tags", "likes.age", "seen.item", "bought.item"):
            known = values.get(name.split(".")[1])
            bags = [bag.tolist() for bag in batch.sparse[name].to_dense()]
            columns[name] += [[known.get(i) for i in bag] for bag in bags] if known else bags
        for i, feature in enumerate(dataset.schema.dense):
            columns[feature.name] += batch.dense[:, i].tolist()
    return pl.DataFrame(columns)


@pytest.mark.parametrize("partition_rows", [16, 1 << 20])
def test_a_log_goes_on_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_rows: int) -> None:
    """Day by day, rows get the past that they get from the whole log at once, and ids never move."""
    monkeypatch.setattr("data_pipelines.disk.spill.PARTITION_ROWS", partition_rows)
    log = make_log(6, 240).sort("time", maintain_order=True)
    cut = int(log["time"].search_sorted(log["time"][120], side="left"))
    days = [log[:cut], log[cut:].with_columns(item=pl.col("item").replace("i3", "brand new"))]
    by_part = {"split": {"by": "column", "column": "part", "valid": 0}}
    for day, part in zip(days, ("train", "test"), strict=True):
        day.with_columns(part=pl.lit(part)).write_parquet(tmp_path / f"{part}.parquet")
    pl.concat(days).with_columns(part=pl.Series(["train"] * cut + ["test"] * (240 - cut))).write_parquet(
        tmp_path / "log"
    )
    config = config_of(tmp_path / "train.parquet").model_dump() | by_part
    whole = prepare(
        DataConfig.model_validate({**config, "log": str(tmp_path / "log"), "format": {"kind": "parquet"}}),
        tmp_path / "whole",
    )
    first = prepare(DataConfig.model_validate(config), tmp_path / "first")
    days[1].with_columns(part=pl.lit("train")).write_parquet(tmp_path / "second.parquet")
    second = prepare(
        DataConfig.model_validate(config), tmp_path / "second", log=str(tmp_path / "second.parquet"), extend=first.path
    )
    old, new = (dataset.encoder.vocabulary("item") for dataset in (first, second))
    assert_frame_equal(new.select("value", "id")[: len(old)], old.select("value", "id"))
    assert new["value"].to_list()[len(old) :] == ["brand new"]
    drift = second.profile["drift"]
    assert (drift["item"]["new_values"], drift["item"]["vanished_values"]) == (1, 1)
    assert drift["item"]["psi"] > drift["tags"]["psi"] >= 0

    grown, expected = named(second, "train"), named(whole, "test")
    for name in PAST:
        if name in ("likes.item", "seen.item", "bought.item"):
            # The whole log's vocabulary does not have the new value, which is of its test rows.
            known = grown[name].list.eval(pl.when(pl.element() != "brand new").then(pl.element()))
            assert known.to_list() == expected[name].to_list()
        else:
            assert grown[name].to_list() == expected[name].to_list(), name
    later = make_log(7, 30).with_columns(pl.col("time") + 1000).lazy()
    states = [State.open(dataset.path / "state") for dataset in (whole, second)]
    assert_frame_equal(*(state.attach(later).collect() for state in states))


def test_the_state_of_a_data_set_is_not_changed_in_place(tmp_path: Path) -> None:
    dataset = prepared(make_log(8), tmp_path)
    assert dataset.state is not None
    with pytest.raises(UserError, match="name another directory"):
        dataset.state.update(str(tmp_path / "dataset.parquet"))
