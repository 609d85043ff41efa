"""Negative sampling: never a known positive, the right frequencies, and the same draws however the log is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.config.learning import Sampling
from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.logs.negatives import NegativeSampler, with_negatives


def positives(pairs: Sequence[tuple[int | None, int]], splits: list[int] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(pairs, schema={"u": pl.Int64, "i": pl.Int64}, orient="row").with_row_index(":row")
    return frame.with_columns(pl.Series(":split", splits or [0] * len(pairs), dtype=pl.Int8))


GROUP = pl.col("u").cast(pl.UInt64)
"""Rows of one user are one group."""


def sampler(config: Sampling, frame: pl.DataFrame) -> NegativeSampler:
    return NegativeSampler(config, frame.lazy().select(group=GROUP, item="i", split=":split"))


def expand(config: Sampling, frame: pl.DataFrame) -> pl.DataFrame:
    return with_negatives(frame, sampler(config, frame), group=GROUP, item="i")


@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), min_size=2, max_size=40),
    negatives=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    by=st.sampled_from(["uniform", "popularity"]),
)
@settings(max_examples=60, deadline=None)
def test_no_negative_is_a_positive_of_its_group(
    pairs: list[tuple[int, int]], negatives: int, seed: int, by: str
) -> None:
    frame = positives(pairs)
    if frame["i"].n_unique() < 2:
        return
    config = Sampling.model_validate({"item": "i", "negatives": negatives, "seed": seed, "by": by})
    out = expand(config, frame)
    kept = out.filter(pl.col("positive") == 1)
    assert kept.select("u", "i").rows() == pairs
    drawn = out.filter(pl.col("positive") == 0)
    assert not set(drawn.select("u", "i").rows()) & set(pairs)
    assert set(drawn["i"]) <= {item for _, item in pairs}
    for user, row, count in drawn.group_by("u", ":row").len().rows():
        assert frame["u"][row] == user
        assert count <= negatives
    assert out[":drawn"].to_list() == (out["positive"] == 0).to_list()


def test_a_row_without_a_group_is_alone() -> None:
    pairs: list[tuple[int | None, int]] = [(None, item) for item in range(4)] * 30
    drawn = expand(Sampling(item="i", negatives=4), positives(pairs)).filter(":drawn")
    assert len(drawn) == 4 * len(pairs)
    own = dict(enumerate(item for _, item in pairs))
    assert all(item != own[row] for row, item in drawn.select(":row", "i").rows())
    assert set(drawn["i"]) == {0, 1, 2, 3}


@pytest.mark.parametrize("exclude", ["basket", "past", "none"])
def test_what_is_excluded(tmp_path: Path, exclude: str) -> None:
    """Two users with two baskets each; and rows without a user."""
    baskets = {("a", 1): [0, 1], ("a", 2): [2, 3], ("b", 1): [4, 5], ("b", 2): [0, 6], (None, 3): [7, 8]}
    rows = [(user, item, time + 10**9) for (user, time), items in baskets.items() for item in items]
    pl.DataFrame(rows, schema=["u", "i", "t"], orient="row").write_parquet(tmp_path / "log.parquet")
    data = implicit(tmp_path / "log.parquet", {"negatives": 40, "exclude": exclude})
    out = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    frame = pl.concat([out.keys("train"), pl.DataFrame({"y": out.labels("train")[:, 0]})], how="horizontal")
    drawn = {key: set(part["i"]) for key, part in frame.filter(pl.col("y") == 0).group_by("u", "t")}
    taken = {user: {item for u, item, _ in rows if u == user} for user in ("a", "b")}
    everything = set(range(9))
    for (user, time), items in baskets.items():
        seen = drawn[user, time + 10**9]
        if exclude == "none" or user is None:
            assert seen == everything  # each item of a basket may be drawn for the others
        else:
            assert seen == everything - (taken[user] if exclude == "past" else set(items))


def test_a_basket_is_what_its_columns_say(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [1, 1, 1, 1], "order": [7, 7, 8, None], "i": [0, 1, 2, 3], "t": [1, 2, 3, 4]})
    log.write_parquet(tmp_path / "log.parquet")
    data = implicit(tmp_path / "log.parquet", {"negatives": 60, "basket": ["order"]})
    out = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    pairs = {
        (time, item)
        for (time, item), label in zip(
            out.keys("train").select("t", "i").rows(), out.labels("train")[:, 0], strict=True
        )
        if label == 0
    }
    assert {item for time, item in pairs if time in (1, 2)} == {2, 3}
    assert {item for time, item in pairs if time == 3} == {0, 1, 3}
    assert {item for time, item in pairs if time == 4} == {0, 1, 2}
    with pytest.raises(UserError, match="no column 'cart' for `sampling`"):
        prepare(
            DataConfig.model_validate(implicit(tmp_path / "log.parquet", {"basket": ["cart"]})), tmp_path / "refused"
        )
    with pytest.raises(ValidationError, match="only for exclude: basket"):
        Sampling(item="i", exclude="past", basket=["order"])


def implicit(log: Path, sampling: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {
        "log": str(log),
        "time": "t",
        "user": "u",
        "keys": ["u", "i"],
        "tasks": {"bought": {"column": "positive"}},
        "split": {"by": "random", "valid": 0, "test": 0},
        "sampling": sampling,
        "features": {"u": {"kind": "id"}, "i": {"kind": "id"}},
        **keys,
    }


def test_drawn_negatives_are_no_events(tmp_path: Path) -> None:
    """Rows prepared with negatives see the past that a state sees which only ever read the log."""
    rng = np.random.default_rng(3)
    users = pl.Series(rng.integers(0, 12, 400)).set(pl.Series(rng.random(400) < 0.1), None)
    log = pl.DataFrame({"u": users, "i": rng.integers(0, 20, 400), "t": np.arange(400) // 4 + 10**9})
    log.write_parquet(tmp_path / "all.parquet")
    log[:-4].write_parquet(tmp_path / "early.parquet")
    log[:200].write_parquet(tmp_path / "first.parquet")
    log[200:-4].write_parquet(tmp_path / "second.parquet")
    features = {
        "u": {"kind": "id"},
        "i": {"kind": "id"},
        "repeats": {"kind": "statistic", "measure": "count", "by": ["u", "i"]},
        "lately": {"kind": "statistic", "measure": "count", "by": ["i"], "window": 30},
        "past": {"kind": "history", "of": ["i"], "last": 400, "entity": "u"},
    }
    data = implicit(tmp_path / "all.parquet", {"negatives": 3}, features=features)
    config = DataConfig.model_validate(data)
    whole = prepare(config, tmp_path / "whole").frame("train").collect()
    expected = log.select("u", "i", "t").rows()
    for user, item, time, repeats, length in whole.select("key:u", "key:i", "key:t", "repeats", "past:length").rows():
        mine = [] if user is None else [i for u, i, t in expected if u == user and t < time]
        assert length == len(mine)
        assert round(np.expm1(repeats)) == mine.count(item)

    prepared = prepare(config, tmp_path / "early", log=str(tmp_path / "early.parquet")).state
    first = prepare(config, tmp_path / "first", log=str(tmp_path / "first.parquet")).state
    assert prepared is not None
    assert first is not None
    updated = first.update(str(tmp_path / "second.parquet"), tmp_path / "updated")
    last = whole.filter(pl.col("key:t") == log["t"][-1])
    rows = last.select(u="key:u", i="key:i", t="key:t")
    for state in (prepared, updated):
        served = state.attach(rows.lazy()).collect()
        assert served["repeats"].to_list() == last["repeats"].to_list()
        assert served["lately"].to_list() == last["lately"].to_list()
        assert served["past.i"].list.len().to_list() == last["past:length"].to_list()
    rate = {"kind": "statistic", "measure": "rate", "of": "bought", "by": ["i"]}
    with pytest.raises(ValidationError, match="use `measure: count`"):
        DataConfig.model_validate({**data, "features": {**features, "rate": rate}})


def test_draws_do_not_depend_on_how_the_log_is_cut() -> None:
    rng = np.random.default_rng(0)
    frame = positives(list(zip(rng.integers(0, 50, 500).tolist(), rng.zipf(1.4, 500).tolist(), strict=True)))
    drawer = sampler(Sampling(item="i", negatives=3, by="popularity", seed=5), frame)
    whole = with_negatives(frame, drawer, group=GROUP, item="i")
    parts = [with_negatives(frame[a : a + 70], drawer, group=GROUP, item="i") for a in range(0, 500, 70)]
    assert pl.concat(parts).equals(whole)
    other = sampler(Sampling(item="i", negatives=3, by="popularity", seed=6), frame)
    assert not with_negatives(frame, other, group=GROUP, item="i").equals(whole)


@pytest.mark.parametrize(("by", "exponent"), [("uniform", 0.75), ("popularity", 0.75), ("popularity", 1.0)])
def test_items_come_as_often_as_log_q_says(by: str, exponent: float) -> None:
    items = np.repeat(np.arange(8), [400, 200, 100, 50, 25, 12, 6, 3])
    frame = positives([(user, int(item)) for user, item in enumerate(items)])
    config = Sampling.model_validate({"item": "i", "negatives": 20, "by": by, "exponent": exponent})
    drawer = sampler(config, frame)
    chance = np.exp(drawer.candidates.sort("item")["log_q"].to_numpy())
    weights = np.bincount(items) ** (exponent if by == "popularity" else 0.0)
    np.testing.assert_allclose(chance, weights / weights.sum())
    drawn = with_negatives(frame, drawer, group=GROUP, item="i").filter(":drawn")["i"].to_numpy()
    # Each user's own item is excluded, so the expected share is that of the rest, averaged over users.
    expected = np.mean([np.where(np.arange(8) == item, 0, chance) / (1 - chance[item]) for item in items], axis=0)
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), expected, atol=0.015)


def test_later_splits_decide_nothing_about_training_rows() -> None:
    pairs = [(user, item) for user in range(30) for item in range(user % 5, user % 5 + 4)]
    config = Sampling(item="i", negatives=4, by="popularity")
    splits = [0] * 100 + [1] * 10 + [2] * 10
    first = expand(config, positives(pairs, splits)).filter(pl.col(":split") == 0)
    changed = pairs[:100] + [(user, 7) for user in range(20)]
    second = expand(config, positives(changed, splits)).filter(pl.col(":split") == 0)
    assert first.equals(second)


def test_prepare_adds_the_negatives_before_the_joins(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    log = pl.DataFrame({"u": rng.integers(0, 40, 400), "i": rng.integers(0, 60, 400), "t": np.arange(400) + 10**9})
    log.write_csv(tmp_path / "log.csv")
    pl.DataFrame({"i": np.arange(60), "kind": np.arange(60) % 3}).write_csv(tmp_path / "items.csv")
    data: dict[str, Any] = {
        "log": str(tmp_path / "log.csv"),
        "joins": [{"table": str(tmp_path / "items.csv"), "on": "i"}],
        "time": "t",
        "user": "u",
        "keys": ["u", "i"],
        "tasks": {"bought": {"column": "positive"}},
        "sampling": {"negatives": 3},
        "features": {"u": {"kind": "id"}, "i": {"kind": "id"}, "kind": {"kind": "id"}},
    }
    config = DataConfig.model_validate(data)
    assert config.sampling is not None
    assert config.sampling.item == "i"
    dataset = prepare(config, tmp_path / "dataset")
    assert dataset.splits == {"train": 320 * 4, "valid": 40 * 4, "test": 40 * 4}
    for split in dataset.splits:
        assert dataset.labels(split).mean() == 0.25
        frame = dataset.frame(split).collect()
        kind = dict(dataset.encoder.vocabulary("kind").select("id", "value").rows())
        expected = [str(int(item) % 3) for item in dataset.keys(split)["i"]]
        assert [kind[number] for number in frame["kind"]] == expected
    assert set(pl.read_parquet(dataset.path / "candidates.parquet").columns) == {"item", "count", "log_q"}


def test_a_text_log_may_have_columns_that_nothing_reads(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [n % 10 for n in range(30)], "i": ["abcdefg"[n % 7] for n in range(30)], "note": "x"})
    features = {"u": {"kind": "id"}, "i": {"kind": "id"}}
    seen = {}
    for suffix, write in (("csv", log.write_csv), ("parquet", log.write_parquet)):
        write(tmp_path / f"log.{suffix}")
        config = DataConfig.model_validate(
            {
                "log": str(tmp_path / f"log.{suffix}"),
                "user": "u",
                "tasks": {"chosen": {"column": "positive"}},
                "sampling": {"item": "i", "negatives": 1},
                "split": {"by": "random", "valid": 0.1, "test": 0.1},
                "features": features,
            }
        )
        seen[suffix] = prepare(config, tmp_path / suffix).frame("train").drop("key:u").collect()
    assert seen["csv"].equals(seen["parquet"])
    assert seen["csv"]["label:chosen"].mean() < 1


def test_what_cannot_be_sampled_is_refused(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [1, 2], "i": [1, 1], "t": [1, 2]})
    log.write_csv(tmp_path / "log.csv")
    data: dict[str, Any] = {
        "log": str(tmp_path / "log.csv"),
        "time": "t",
        "user": "u",
        "tasks": {"bought": {"column": "positive"}},
        "split": {"by": "random", "valid": 0, "test": 0},
        "sampling": {"item": "i"},
        "features": {"u": {"kind": "id"}, "i": {"kind": "id"}},
    }
    with pytest.raises(UserError, match="two distinct items"):
        prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    with pytest.raises(UserError, match="no column 'j'"):
        prepare(DataConfig.model_validate({**data, "sampling": {"item": "j"}}), tmp_path / "dataset")
    with pytest.raises(ValidationError, match="needs the key `user`"):
        DataConfig.model_validate({**data, "user": None})
    log.with_columns(positive=1).write_csv(tmp_path / "own.csv")
    with pytest.raises(UserError, match="has a column 'positive', which `sampling` adds"):
        prepare(DataConfig.model_validate({**data, "log": str(tmp_path / "own.csv")}), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
