"""Logs of strangers at the first look: what ``inspect`` and ``init`` make of their columns."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from look_examples import ROWS, column, log, looked_at, started, why
from typer.testing import CliRunner

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.profile.formats import guess_format
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.starter.config import starter_config
from data_pipelines.profile.wording import percent, shown
from recsys.cli import app


def test_what_new_rows_do_not_have_is_said_and_left_out(tmp_path: Path, rng: np.random.Generator) -> None:
    month = np.arange(ROWS) // 500
    columns = {
        "session": [f"s{n // 5}" for n in range(ROWS)],
        "month": month,
        "serial": 10**6 + np.arange(ROWS) * 7 + rng.integers(0, 5, ROWS),
        "odometer": np.arange(ROWS) * 1.5 + rng.random(ROWS),
        "campaign": [f"c{n // 1000}" if n % 2 else "none" for n in range(ROWS)],
    }
    profile = looked_at(tmp_path, log(**columns))
    assert column(profile, "session").unseen == pytest.approx(1.0)
    assert "is new in 100% of the latest tenth" in why(profile, "session")
    assert "in one stretch of time only" in why(profile, "month")
    assert "running number" in why(profile, "serial")
    assert "beyond its earlier range" in why(profile, "odometer")
    assert why(profile, "campaign") == ""
    assert not {"session", "month", "serial", "odometer"} & started(profile).data.features.keys()


def test_values_that_are_often_new_are_trained_as_unknown(tmp_path: Path) -> None:
    shop = [f"s{n // 200}-{n % 4}" if n % 2 else "main" for n in range(ROWS)]
    once = [f"o{n}" if n % 3 else f"o{n % 50}" for n in range(ROWS)]
    config = started(looked_at(tmp_path, log(shop=shop, once=once)))
    assert config.train.unknown["shop"] == pytest.approx(0.5, abs=0.11)
    assert config.data.features["once"].model_dump()["min_count"] == 2
    assert "once" not in config.train.unknown


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "Validation", "Test"), ("train", "test")])
def test_a_given_split_is_used(tmp_path: Path, names: Sequence[str], rng: np.random.Generator) -> None:
    fold = rng.choice(names, ROWS, p=[0.7, 0.1, 0.2] if len(names) == 3 else [0.8, 0.2])
    profile = looked_at(tmp_path, log(fold=fold))
    config = started(profile)
    assert (config.data.split.by, config.data.split.column) == ("column", "fold")
    assert "fold" not in config.data.features
    splits = prepare(config.data, tmp_path / "dataset").splits
    assert splits["test"] == (fold == names[-1]).sum()
    assert splits["valid"] == pytest.approx(0.1 * ROWS, rel=0.25)
    assert sum(splits.values()) == ROWS


def test_a_split_column_with_other_values_is_said(tmp_path: Path, rng: np.random.Generator) -> None:
    profile = looked_at(tmp_path, log(fold=rng.choice(["train", "test"], ROWS)))
    data = started(profile).data
    log(fold=rng.choice(["train", "test", "later"], ROWS)).write_parquet(tmp_path / "log.parquet")
    with pytest.warns(Notice, match="'later', which are none of train"):
        prepare(data, tmp_path / "dataset")
    log(fold=rng.choice(["a", "b"], ROWS)).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match="no row called train: its values are"):
        prepare(data, tmp_path / "refused")


def test_codes_and_quantities(tmp_path: Path, rng: np.random.Generator) -> None:
    columns = {
        "occupation": rng.integers(0, 21, ROWS),
        "ip": rng.integers(0, 700, ROWS),
        "x7": rng.integers(0, 60, ROWS),
        "item_count": rng.integers(0, 60, ROWS),
        "gains": np.where(rng.random(ROWS) < 0.9, 0.0, rng.lognormal(5, 2, ROWS)),
        "distance": rng.random(ROWS),
    }
    profile = looked_at(tmp_path, log(**columns))
    roles = {name: column(profile, name).role for name in columns}
    assert roles == dict.fromkeys(("occupation", "ip"), "id") | dict.fromkeys(
        ("x7", "item_count", "gains", "distance"), "number"
    )
    assert column(profile, "gains").atoms == pytest.approx(0.9, abs=0.03)
    features = started(profile).data.features
    assert {"x7_value", "item_count_value", "gains_value"} <= features.keys()
    assert "distance_value" not in features


@pytest.mark.parametrize(
    ("values", "role", "reason"),
    [
        (["NA", "", "null", "n/a"], "constant", "has no value in any row"),
        (["same"], "constant", "has one value only"),
        (['{"a": 1}', '{"a": 2, "b": "x"}'], "json", "holds JSON"),
        (['[{"a": 1}]', '[{"a": 2}, {"a": 3}]'], "json", "holds JSON"),
        (["[1, 2]", "[]", "[3]"], "bag", ""),
        (["['a', 'b']", "['c']"], "bag", ""),
        (["n12 n7 n3", "n7", "n12 n9"], "bag", ""),
        (["a|b", "b", "c|a"], "bag", ""),
    ],
)
def test_columns_of_text(tmp_path: Path, values: list[str], role: str, reason: str, rng: np.random.Generator) -> None:
    profile = looked_at(tmp_path, log(x=rng.choice(values, ROWS)))
    assert column(profile, "x").role == role
    assert reason in why(profile, "x")
    assert ("x" in started(profile).data.features) == (role == "bag")


def test_free_text_is_left_out(tmp_path: Path) -> None:
    review = [f"the film of row {n} was of some interest to us" for n in range(ROWS)]
    profile = looked_at(tmp_path, log(review=review))
    assert "is free text" in why(profile, "review")
    assert "# Left out: review is free text" in starter_config(profile)


@pytest.mark.parametrize(
    ("name", "values", "kind", "rule"),
    [
        ("rating", np.random.default_rng(2).integers(1, 6, ROWS), "binary", {"at_least": 4.0}),
        ("grade", np.random.default_rng(2).integers(1, 11, ROWS) / 2, "binary", {"at_least": 4.0}),
        ("Quantity", np.random.default_rng(2).geometric(0.2, ROWS), "count", {}),
        ("kids", np.random.default_rng(2).poisson(0.5, ROWS), "count", {}),
        ("spent", np.random.default_rng(2).lognormal(3, 1, ROWS), "regression", {}),
        ("balance", np.random.default_rng(2).integers(-5000, 5000, ROWS), "regression", {}),
        ("sign", np.random.default_rng(2).choice([-1, 1], ROWS), "binary", {"at_least": 1.0}),
        ("answer", np.random.default_rng(2).choice(["Ja", "nein", "NA"], ROWS), "binary", {"positive": ("Ja",)}),
        (
            "income",
            np.random.default_rng(2).choice(["' 50000+.'", "' - 50000.'"], ROWS, p=[0.1, 0.9]),
            "binary",
            {"positive": ("' 50000+.'",)},
        ),
    ],
)
def test_labels_of_every_kind_get_a_task(
    tmp_path: Path, name: str, values: Any, kind: str, rule: dict[str, Any]
) -> None:
    profile = looked_at(tmp_path, log(**{name: values}).drop("click"), label=name)
    [task] = started(profile).data.tasks.values()
    assert task.kind == kind
    assert {key: getattr(task, key) for key in rule} == rule
    assert (profile.label_rate is None) == (kind != "binary")


def test_a_missing_label_is_no_label(tmp_path: Path, rng: np.random.Generator) -> None:
    label = np.where(rng.random(ROWS) < 0.2, "NA", rng.choice(["0", "1"], ROWS))
    log(click=label).write_csv(tmp_path / "log.csv")
    profile = inspect_log(str(tmp_path / "log.csv"))
    assert profile.label_rate == pytest.approx(0.5, abs=0.05)
    dataset = prepare(started(profile).data, tmp_path / "dataset")
    assert dataset.profile["refused"] == {"no label": (label == "NA").sum()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"label": "answer", "positive": ["maybe"]},
            r"--positive 'maybe' is not a value .* its values are .*'It''?.*s'|yes",
        ),
        ({"label": "answer", "positive": ["yes", "no", "It's"]}, "names every value"),
        ({"label": "answer"}, "name the values that count as positive"),
        ({"label": "stars", "at_least": 9.0}, "no row reaches it"),
        ({"label": "stars", "at_least": 0.0}, "every row reaches it"),
        ({"label": "same"}, "has one value"),
        ({"label": "nope"}, "--label: there is no column 'nope'"),
        ({"item": "nope"}, "--item: there is no column 'nope'"),
    ],
)
def test_what_cannot_be_a_label_is_refused_with_what_there_is(
    tmp_path: Path, options: dict[str, Any], said: str, rng: np.random.Generator
) -> None:
    columns = {
        "answer": rng.choice(["yes", "no", "It's"], ROWS),
        "stars": rng.integers(1, 6, ROWS),
        "same": ["x"] * ROWS,
    }
    with pytest.raises(UserError, match=said):
        looked_at(tmp_path, log(**columns), **options)


def test_purchases_become_a_log_of_positives(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = log(Quantity=rng.geometric(0.2, ROWS) - 2).drop("click").rename({"user": "CustomerID", "item": "StockCode"})
    profile = looked_at(tmp_path, frame)
    assert (profile.user, profile.item, profile.label) == ("CustomerID", "StockCode", None)
    config = started(profile)
    assert config.data.sampling is not None
    assert config.data.sampling.item == "StockCode"
    assert config.data.sampling.corrects
    assert {"recent", "count_of_item", "count_of_user_and_item", "last_of_user_and_item"} <= config.data.features.keys()
    assert "Quantity" not in config.data.features
    assert "of the rows have a Quantity below 0, as returns and refunds do." in starter_config(profile)
    named = looked_at(tmp_path, frame.rename({"StockCode": "ding"}), item="ding")
    assert named.item == "ding"


def test_inspect_says_what_init_would_miss(tmp_path: Path) -> None:
    pl.DataFrame({"a": ["x", "y", "z"] * 9, "b": [0.5, 1.5, 0.1] * 9}).write_csv(tmp_path / "log.csv")
    said = CliRunner().invoke(app, ["inspect", str(tmp_path / "log.csv")])
    assert said.exit_code == 0
    assert "name its columns with --user and --item" in said.stdout
    assert "Next: recsys init:" in said.stdout


def test_parts_of_time_vary_within_train(tmp_path: Path) -> None:
    def parts(days: float) -> Any:
        time = 1_700_000_000 + np.linspace(0, days * 86_400, ROWS).astype(int)
        when = started(looked_at(tmp_path, log(time=time))).data.features.get("when")
        return when and when.model_dump()["parts"]

    assert parts(0.5) is None
    assert parts(2) == ["hour"]
    assert parts(40) == ["hour", "weekday"]


def test_side_tables_are_joined_under_names_of_their_own(tmp_path: Path, rng: np.random.Generator) -> None:
    items = pl.DataFrame({"sku": [f"i{n}" for n in range(38)], "year": range(1980, 2018), "genre": ["a", "b"] * 19})
    users = pl.DataFrame({"user": [f"u{n}" for n in range(90)], "year": range(1930, 2020)})
    items.write_csv(tmp_path / "items.csv")
    users.write_parquet(tmp_path / "users.parquet")
    frame = log(year=rng.integers(2020, 2024, ROWS))
    sides = [str(tmp_path / "items.csv"), str(tmp_path / "users.parquet")]
    profile = looked_at(tmp_path, frame, sides=sides)
    first, second = profile.sides
    assert (first.join.on, first.join.prefix) == ({"item": "sku"}, "items_")
    assert first.unmatched == pytest.approx(2 / 40, abs=0.02)
    assert (second.join.on, second.join.prefix) == ("user", "users_")
    config = started(profile)
    assert {"year", "items_year", "items_genre", "users_year"} <= config.data.features.keys()
    dataset = prepare(config.data, tmp_path / "dataset")
    assert dataset.profile["side_tables"][sides[0]] == pytest.approx(2 / 40, abs=0.02)
    implicit = started(looked_at(tmp_path, frame.drop("click"), sides=sides)).data.features
    assert "items_genre" in implicit
    assert "year" not in implicit


def test_a_column_of_a_side_table_that_is_there_already_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    table = tmp_path / "items.csv"
    pl.DataFrame({"item": [f"i{n}" for n in range(40)], "year": range(40), "unread": range(40)}).write_csv(table)
    log(year=rng.integers(0, 9, ROWS), unread=0).write_parquet(tmp_path / "log.parquet")
    data: dict[str, Any] = {
        "log": str(tmp_path / "log.parquet"),
        "joins": [{"table": str(table), "on": "item"}],
        "tasks": {"click": {"column": "click"}},
        "features": {"year": {"kind": "number"}},
    }
    with pytest.raises(UserError, match=r"items\.csv adds 'year', which .* already: set `columns` .* or `prefix`"):
        prepare(DataConfig.model_validate(data), tmp_path / "refused")
    data["joins"][0]["prefix"] = "item_"
    data["features"]["item_year"] = {"kind": "number"}
    dataset = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    assert dataset.feature("train", "item_year").n_unique() == 40
    assert dataset.feature("train", "year").n_unique() == 9


def test_a_side_table_without_matching_keys_is_said(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["other"], "year": [1]}).write_csv(tmp_path / "items.csv")
    log().write_parquet(tmp_path / "log.parquet")
    data = {
        "log": str(tmp_path / "log.parquet"),
        "joins": [{"table": str(tmp_path / "items.csv"), "on": "item"}],
        "tasks": {"click": {"column": "click"}},
        "features": {"year": {"kind": "id"}},
    }
    with pytest.warns(Notice, match=r"has no row for 100\.0% of the rows"):
        prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    with pytest.raises(UserError, match="is a key of the log"):
        looked_at(tmp_path, log(), sides=[str(tmp_path / "items.csv")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_exports_of_a_spreadsheet(tmp_path: Path, encoding: str) -> None:
    rows = [
        f"2024-01-{1 + n // 40:02d} {n % 24:02d}:00;k{n % 9};a{n % 7};{['Köln', 'Bern'][n % 2]};{n % 90},{n % 10}5;"
        f"{['ja', 'nein', 'nein'][n % 3]}"
        for n in range(800)
    ]
    (tmp_path / "log.csv").write_text("\n".join(["Zeit;Kunde;Artikel;Stadt;Preis;geklickt", *rows]), encoding=encoding)
    profile = inspect_log(str(tmp_path / "log.csv"))
    assert (profile.time, profile.user, profile.item, profile.label) == ("Zeit", "Kunde", "Artikel", "geklickt")
    assert column(profile, "Preis").role == "number"
    assert {value for value, _ in column(profile, "Stadt").top} == {"Köln", "Bern"}
    assert prepare(started(profile).data, tmp_path / "dataset").splits["train"] == 640


def test_files_of_other_tools(tmp_path: Path) -> None:
    rows = "\n".join(f"u{n % 9}\ti{n % 7}\t{n % 5 + 1}.0\t{1_700_000_000 + n * 99}" for n in range(300))
    (tmp_path / "x.inter").write_text(f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{rows}\n")
    (tmp_path / "x.log").write_text(f"user_id\titem_id\trating\ttimestamp\n{rows}\n")
    for name in ("x.inter", "x.log"):
        profile = inspect_log(str(tmp_path / name))
        assert (profile.user, profile.item, profile.label) == ("user_id", "item_id", "rating")
        prepare(started(profile).data, tmp_path / f"{name}.dataset")
    assert guess_format(str(tmp_path / "x.log"), "csv") == guess_format(str(tmp_path / "x.log"))


def test_the_blanks_and_signs_of_uci(tmp_path: Path) -> None:
    rows = "\n".join(f"{n % 70}, Private, {' >50K' if n % 4 == 0 else ' <=50K'}" for n in range(400))
    (tmp_path / "adult.csv").write_text(f"age, workclass, income\n{rows}\n")
    profile = inspect_log(str(tmp_path / "adult.csv"), label="income", positive=[">50K"])
    assert profile.label_rate == pytest.approx(0.25)


def test_shares_and_values_cannot_be_misread() -> None:
    assert [percent(share) for share in (0, 0.00001, 0.05, 0.9996, 1)] == ["0%", "<0.1%", "5.0%", ">99.9%", "100%"]
    assert [shown(value) for value in ("a b", "a, b", " a", "'a'", "")] == ["a b", '"a, b"', '" a"', "\"'a'\"", '""']


def test_the_public_interface_of_a_log_without_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        prepare(started(looked_at(tmp_path, log())).data, tmp_path / "dataset")
