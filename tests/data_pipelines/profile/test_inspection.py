"""A first look at a log: guesses, suspicions, and the starter config that comes of them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.profile.inspection import Column, LogProfile, inspect_log
from data_pipelines.profile.starter.config import starter_config

ROWS = 3000
Write = Callable[[pl.DataFrame], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(frame: pl.DataFrame) -> str:
        frame.write_parquet(tmp_path / "log.parquet")
        return str(tmp_path / "log.parquet")

    return write


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    click = rng.random(ROWS) < 0.2
    rank = np.arange(1, 201) ** -1.2
    return pl.DataFrame(
        {
            "": np.arange(ROWS),
            "UserId": rng.integers(0, 300, ROWS),
            "item": [f"i{i}" for i in rng.choice(200, ROWS, p=rank / rank.sum())],
            "created": pl.Series(1_700_000_000 + np.arange(ROWS) * 600).cast(pl.Int64) * 1000,
            "at": [f"2026-01-{1 + i * 28 // ROWS:02}T10:00:00+02:00" for i in range(ROWS)],
            "genres": [["a", "b|c", "c|d|a"][i] for i in rng.integers(0, 3, ROWS)],
            "related": [["[1, 2]", "[]", "[17]"][i] for i in rng.integers(0, 3, ROWS)],
            "tags": [["x"] * int(i) for i in rng.integers(0, 4, ROWS)],
            "emb": [[0.1, 0.2, 0.3]] * ROWS,
            "price": pl.Series(rng.lognormal(2, 2, ROWS)).set(pl.Series(rng.random(ROWS) < 0.1), None),
            "country": rng.integers(0, 30, ROWS),
            "always": ["same"] * ROWS,
            "hash": [f"{i:x}" for i in rng.permutation(10**6)[:ROWS]],
            "gone": pl.Series([None] * (ROWS - 20) + list(range(20)), dtype=pl.Int64),
            "review": [f"the film number {i} was of some interest to me" for i in range(ROWS)],
            "charged": np.where(click, rng.random(ROWS) + 1, 0.0),
            "click": click.astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def profile(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> LogProfile:
    path = tmp_path_factory.mktemp("inspected") / "log.parquet"
    frame.write_parquet(path)
    return inspect_log(str(path))


def column(profile: LogProfile, name: str) -> Column:
    return next(column for column in profile.columns if column.name == name)


def test_roles(profile: LogProfile) -> None:
    assert {column.name: column.role for column in profile.columns} == {
        "": "index",
        "UserId": "user",
        "item": "item",
        "created": "time",
        "at": "time",
        "genres": "bag",
        "related": "bag",
        "tags": "bag",
        "emb": "vector",
        "price": "number",
        "country": "id",
        "always": "constant",
        "hash": "id",
        "gone": "id",
        "review": "text",
        "charged": "number",
        "click": "label",
    }
    assert (profile.label, profile.time, profile.user, profile.item) == ("click", "at", "UserId", "item")


def test_figures(profile: LogProfile, frame: pl.DataFrame) -> None:
    assert profile.rows == ROWS
    assert profile.label_rate == pytest.approx(frame["click"].mean())
    assert sum(rows for _, rows, _ in profile.days) == ROWS
    assert (profile.first, profile.last) == ("2026-01-01 08:00:00", "2026-01-28 08:00:00")
    item = column(profile, "item")
    counts = frame["item"].value_counts(sort=True)
    assert item.distinct == counts.height
    assert item.top[0][1] == counts["count"][0]
    assert item.frequencies[0] == (1, counts["count"][0])
    assert item.zipf == pytest.approx(1.2, abs=0.15)
    assert column(profile, "price").nulls == pytest.approx(frame["price"].null_count() / ROWS)
    assert column(profile, "genres").distinct == 4
    assert column(profile, "tags").mean_length == pytest.approx(frame["tags"].list.len().mean())


def test_suspicions(profile: LogProfile) -> None:
    odd = {column.name: " ".join(column.suspicions) for column in profile.columns if column.suspicions}
    assert set(odd) == {"", "always", "hash", "gone", "review", "charged"}
    assert "running number" in odd[""]
    assert "one value only" in odd["always"]
    assert "different in every row" in odd["hash"]
    assert "null in 99.3%" in odd["gone"]
    assert "predicts the label alone" in odd["charged"]


def test_ratings_get_a_threshold_and_positives_get_negatives(write: Write) -> None:
    rng = np.random.default_rng(1)
    log = pl.DataFrame(
        {"user": rng.integers(0, 50, 500), "movie": rng.integers(0, 80, 500), "ts": 10**9 + np.arange(500)}
    )
    rated = inspect_log(write(log.with_columns(rating=pl.Series(rng.integers(1, 6, 500)))))
    assert (rated.label, rated.label_at_least) == ("rating", 4)
    implicit = yaml.safe_load(starter_config(inspect_log(write(log))))["data"]
    assert implicit["sampling"]["item"] == "movie"
    assert implicit["tasks"] == {"chosen": {"column": "positive"}}


def test_labels_and_numbers_in_words(write: Write) -> None:
    rng = np.random.default_rng(2)
    said = np.where(rng.random(400) < 0.3, "Yes", "No")
    price = np.where(rng.random(400) < 0.2, "N/A", rng.random(400).round(3).astype(str))
    words = pl.DataFrame({"user": rng.integers(0, 50, 400), "price": price, "Liked?": said})
    profile = inspect_log(write(words))
    assert (profile.label, profile.label_positive) == ("Liked?", ("Yes",))
    assert profile.label_rate == pytest.approx((said == "Yes").mean())
    assert (column(profile, "price").role, column(profile, "price").nulls) == ("number", (price == "N/A").mean())
    assert yaml.safe_load(starter_config(profile))["data"]["tasks"] == {
        "Liked": {"column": "Liked?", "positive": ["Yes"]}
    }
    events = write(words.with_columns(event=pl.Series(rng.choice(["view", "cart", "buy"], 400))).drop("Liked?"))
    with pytest.raises(UserError, match=r"'event' holds text \(.*view.*name the values that count .* --positive"):
        inspect_log(events, label="event")
    bought = inspect_log(events, label="event", positive=["cart", "buy"])
    assert bought.label_rate == pytest.approx(2 / 3, abs=0.1)


def test_what_the_past_could_add_is_ready_to_use_whatever_the_label_is_called(write: Write, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = {
        "user_id": rng.integers(0, 20, 400),
        "item_id": rng.integers(0, 30, 400),
        "time": 1_700_000_000 + np.arange(400) * 60,
        'the "verdict"': np.where(rng.random(400) < 0.5, "it's good", "it isn't"),
    }
    path = write(pl.DataFrame(rows))
    draft = starter_config(inspect_log(path, label='the "verdict"', positive=["it's good"]))
    uncommented = re.sub(r"(?m)^    # (\w+: \{)", r"    \1", draft)
    config = DataConfig.model_validate(yaml.safe_load(uncommented)["data"])
    assert config.features["recent"].kind == "history"
    prepared = prepare(config, tmp_path / "dataset")
    lengths = prepared.frame("test").select("recent:length").collect().to_series()
    assert lengths.sum() > 0


def test_what_is_named_is_not_guessed(write: Write, frame: pl.DataFrame) -> None:
    named = inspect_log(write(frame), label="country", time="created", user="item")
    assert (named.label, named.time, named.user) == ("country", "created", "item")
    with pytest.raises(UserError, match="no column 'nope'"):
        inspect_log(write(frame), label="nope")


@pytest.mark.parametrize(("delimiter", "suffix"), [(",", "csv"), ("\t", "csv"), (";", "txt"), ("|", "dat")])
def test_delimiters_are_sniffed(tmp_path: Path, delimiter: str, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    pl.DataFrame({"user": [1, 2, 1], "y": [0, 1, 1]}).write_csv(path, separator=delimiter)
    assert [column.name for column in inspect_log(str(path)).columns] == ["user", "y"]


def test_no_header(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("0\ta\t3\n1\tb\t4\n1\ta\t\n")
    profile = inspect_log(str(tmp_path / "log.txt"))
    assert profile.rows == 3
    assert profile.label == "column_1"


def test_a_starter_config_runs_as_it_stands(write: Write, frame: pl.DataFrame, tmp_path: Path) -> None:
    text = starter_config(inspect_log(write(frame.rename({"price": "price: (EUR)", "country": "on"}))))
    data = yaml.safe_load(text)["data"]
    features = data["features"]
    assert set(features) == {
        *("UserId", "item", "genres", "related", "tags", "emb", "price_EUR", "on", "on_value", "created_age", "when"),
        *("recent", "rate_of_user", "rate_of_item", "count_of_user", "count_of_item"),
        *("rate_of_user_7d", "rate_of_item_7d"),
        *("rate_of_user_and_item", "rate_of_user_and_genres", "rate_of_user_and_related"),
        *("count_of_user_and_item", "count_of_user_and_genres", "count_of_user_and_related"),
    }
    assert features["genres"]["delimiter"] == "|"
    assert features["price_EUR"] == {
        "kind": "number",
        "transform": "log1p",
        "indicator": True,
        "column": "price: (EUR)",
    }
    assert "    # charged: {kind: number, transform" in text
    assert "# is set only where 'click' is positive, as if recorded after it; predicts the label alone" in text
    dataset = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    assert sum(dataset.splits.values()) == ROWS


def test_commented_suggestions_run_too(write: Write, frame: pl.DataFrame, tmp_path: Path) -> None:
    text = starter_config(inspect_log(write(frame)))
    text = text.replace("    # recent", "    recent").replace("    # rate_of", "    rate_of")
    config = DataConfig.model_validate(yaml.safe_load(text)["data"])
    assert {"recent", "rate_of_user", "rate_of_item"} <= set(config.features)
    prepare(config, tmp_path / "dataset")


def test_nothing_to_start_from(write: Write) -> None:
    with pytest.raises(UserError, match="shows no label"):
        starter_config(inspect_log(write(pl.DataFrame({"a": ["x", "y", "x"], "b": [0.5, 1.5, 0.1]}))))
    with pytest.raises(UserError, match="holds no rows"):
        inspect_log(write(pl.DataFrame({"a": []}, schema={"a": pl.Int64})))
