"""Rows that may be returns, cancellations, bots or tests are found, and the proposed condition leaves them out."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice
from data_pipelines.features.config import DataConfig
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.starter.config import starter_config

N = 600
LOG = pl.DataFrame(
    {
        "time": [1_700_000_000 + 600 * n for n in range(N)],
        "user": [f"u{n * 7 % 31}" for n in range(N)],
        "item": [f"i{n * 5 % 29}" for n in range(N)],
        "click": [int(n * n % 7 == 2) for n in range(N)],
    }
)
TENTH = [n % 10 == 3 for n in range(N)]


def tenth(those: Any, others: Any, *, sometimes: Any = None) -> list[Any]:
    """A tenth of ``those``, and of the ``others`` some that are ``sometimes``."""
    rest = [sometimes if sometimes is not None and n % 7 == 1 else others for n in range(N)]
    return [those if one else other for one, other in zip(TENTH, rest, strict=True)]


@pytest.mark.parametrize(
    ("column", "values", "condition"),
    [
        ("quantity", [-1.5 if one else n % 5 + 0.5 for n, one in enumerate(TENTH)], "quantity >= 0"),
        ("Order Qty", [-1.5 if one else n % 5 + 0.5 for n, one in enumerate(TENTH)], '"Order Qty" >= 0'),
        ("order_status", tenth("Cancelled", "paid", sometimes="sent"), "order_status NOT IN ('Cancelled')"),
        ("status", tenth("refunded", "paid", sometimes="void"), "status NOT IN ('refunded', 'void')"),
        ("is_bot", tenth(True, False), "is_bot = false"),
        ("test_user", tenth(1, 0), "test_user = 0"),
        ("fraud", tenth("yes", "no"), "fraud = 'no'"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_exceptions_are_found_and_can_be_left_out(
    tmp_path: Path, column: str, values: list[Any], condition: str, kind: str
) -> None:
    log = LOG.with_columns(pl.Series(column, values))
    {"parquet": log.write_parquet, "csv": log.write_csv}[kind](tmp_path / f"log.{kind}")
    profile = inspect_log(str(tmp_path / f"log.{kind}"))
    assert [found.condition for found in profile.exclusions] == [condition]
    text = starter_config(profile)
    assert yaml.safe_load(text)["data"].get("where") is None
    data = yaml.safe_load(text.replace("  # where:", "  where:"))["data"]
    with pytest.warns(Notice, match="are left out by"):
        dataset = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    assert dataset.profile["left_out"] == sum(TENTH) + values.count("void")


def test_rows_without_a_value_are_kept(tmp_path: Path) -> None:
    values = [None if n % 4 == 0 else value for n, value in enumerate(tenth("cancelled", "paid", sometimes="sent"))]
    LOG.with_columns(status=pl.Series(values)).write_parquet(tmp_path / "log.parquet")
    (found,) = inspect_log(str(tmp_path / "log.parquet")).exclusions
    assert found.condition == "status NOT IN ('cancelled') OR status IS NULL"
    assert found.share == pytest.approx(sum(value == "cancelled" for value in values) / N)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("temperature", [-1.5 if one else 20.5 + n % 3 for n, one in enumerate(TENTH)]),
        ("quantity", [n % 5 + 0.5 for n in range(N)]),
        ("quantity", [-1.5 if not one else 2.5 + n % 3 for n, one in enumerate(TENTH)]),
        ("status", tenth("open", "paid", sometimes="sent")),
    ],
)
def test_nothing_is_proposed_where_nothing_seems_undone(tmp_path: Path, column: str, values: list[Any]) -> None:
    LOG.with_columns(pl.Series(column, values)).write_parquet(tmp_path / "log.parquet")
    profile = inspect_log(str(tmp_path / "log.parquet"))
    assert profile.exclusions == ()
    assert "where:" not in starter_config(profile).replace(', where: "', "")


def test_the_label_is_no_exception(tmp_path: Path) -> None:
    LOG.drop("click").with_columns(pl.Series("fraud", tenth(1, 0))).write_parquet(tmp_path / "log.parquet")
    assert inspect_log(str(tmp_path / "log.parquet"), label="fraud").exclusions == ()
