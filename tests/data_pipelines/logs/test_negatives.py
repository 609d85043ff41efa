"""Negative sampling: never a known positive, the right frequencies, and the same draws however the log is read."""

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


def positives(pairs: list[tuple[int, int]], splits: list[int] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(pairs, schema={"u": pl.Int64, "i": pl.Int64}, orient="row").with_row_index("__row")
    return frame.with_columns(pl.Series("__split", splits or [0] * len(pairs), dtype=pl.Int8))


def sampler(config: Sampling, frame: pl.DataFrame) -> NegativeSampler:
    return NegativeSampler(config, frame.lazy().select(user="u", item="i", split="__split"))


def expand(config: Sampling, frame: pl.DataFrame) -> pl.DataFrame:
    return with_negatives(frame, sampler(config, frame), user="u", item="i")


@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), min_size=2, max_size=40),
    negatives=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    by=st.sampled_from(["uniform", "popularity"]),
)
@settings(max_examples=60, deadline=None)
def test_no_negative_is_a_known_positive(pairs: list[tuple[int, int]], negatives: int, seed: int, by: str) -> None:
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
    for user, row, count in drawn.group_by("u", "__row").len().rows():
        assert frame["u"][row] == user
        assert count <= negatives


def test_draws_do_not_depend_on_how_the_log_is_cut() -> None:
    rng = np.random.default_rng(0)
    frame = positives(list(zip(rng.integers(0, 50, 500).tolist(), rng.zipf(1.4, 500).tolist(), strict=True)))
    drawer = sampler(Sampling(item="i", negatives=3, by="popularity", seed=5), frame)
    whole = with_negatives(frame, drawer, user="u", item="i")
    parts = [with_negatives(frame[a : a + 70], drawer, user="u", item="i") for a in range(0, 500, 70)]
    assert pl.concat(parts).equals(whole)
    other = sampler(Sampling(item="i", negatives=3, by="popularity", seed=6), frame)
    assert not with_negatives(frame, other, user="u", item="i").equals(whole)


@pytest.mark.parametrize(("by", "exponent"), [("uniform", 0.75), ("popularity", 0.75), ("popularity", 1.0)])
def test_items_come_as_often_as_log_q_says(by: str, exponent: float) -> None:
    items = np.repeat(np.arange(8), [400, 200, 100, 50, 25, 12, 6, 3])
    frame = positives([(user, int(item)) for user, item in enumerate(items)])
    config = Sampling.model_validate({"item": "i", "negatives": 20, "by": by, "exponent": exponent})
    drawer = sampler(config, frame)
    chance = np.exp(drawer.candidates.sort("item")["log_q"].to_numpy())
    weights = np.bincount(items) ** (exponent if by == "popularity" else 0.0)
    np.testing.assert_allclose(chance, weights / weights.sum())
    drawn = with_negatives(frame, drawer, user="u", item="i").filter(pl.col("positive") == 0)["i"].to_numpy()
    # Each user's own item is excluded, so the expected share is that of the rest, averaged over users.
    expected = np.mean([np.where(np.arange(8) == item, 0, chance) / (1 - chance[item]) for item in items], axis=0)
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), expected, atol=0.015)


def test_later_splits_decide_nothing_about_training_rows() -> None:
    pairs = [(user, item) for user in range(30) for item in range(user % 5, user % 5 + 4)]
    config = Sampling(item="i", negatives=4, by="popularity")
    splits = [0] * 100 + [1] * 10 + [2] * 10
    first = expand(config, positives(pairs, splits)).filter(pl.col("__split") == 0)
    changed = pairs[:100] + [(user, 7) for user in range(20)]
    second = expand(config, positives(changed, splits)).filter(pl.col("__split") == 0)
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
    pl.DataFrame({"u": [1, 2], "i": [1, 1], "t": [1, 2]}).write_csv(tmp_path / "log.csv")
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
    assert not (tmp_path / "dataset").exists()
