"""Logs of every format, text without guessed types, and side tables."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from data_pipelines.files.formats import scan_files
from data_pipelines.logs.sources import scan

LOG = pl.DataFrame(
    {
        "user": ["007", "8", None, "9"] * 10,
        "time": list(range(1_700_000_000, 1_700_000_040)),
        "click": [0, 1] * 20,
        "tags": ["[1, 2]", "[]", None, "['a']"] * 10,
        "price": [1.5, None, 2.0, 3.0] * 10,
    }
)
DATA: dict[str, Any] = {
    "time": "time",
    "tasks": {"click": {"column": "click"}},
    "features": {"user": {"kind": "id"}, "tags": {"kind": "bag"}, "price": {"kind": "number"}},
}


def write(folder: Path, kind: str) -> tuple[str, dict[str, Any] | None]:
    path = folder / f"log.{kind}"
    match kind:
        case "csv":
            LOG.write_csv(path)
        case "csv.gz":
            path.write_bytes(gzip.compress(LOG.write_csv().encode()))
        case "txt":
            LOG.write_csv(path, separator="|", include_header=False)
            return str(path), {"kind": "csv", "delimiter": "|", "header": False, "columns": LOG.columns}
        case "tsv":
            LOG.write_csv(path, separator="\t")
        case "ndjson":
            LOG.write_ndjson(path)
        case "arrow":
            LOG.write_ipc(path)
        case "delta":
            LOG.write_delta(str(path))
        case "folder":
            path.mkdir()
            for part in range(4):
                LOG[part * 10 : part * 10 + 10].write_parquet(path / f"{part}.parquet")
        case "hive":
            for part in range(4):
                (path / f"part={part}").mkdir(parents=True)
                LOG[part * 10 : part * 10 + 10].write_parquet(path / f"part={part}" / "rows.parquet")
        case "glob":
            write(folder, "folder")
            return str(folder / "log.folder" / "*.parquet"), None
        case _:
            LOG.write_parquet(path)
    return str(path), None


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    folder = tmp_path_factory.mktemp("expected")
    location, _ = write(folder, "parquet")
    return prepare(DataConfig.model_validate({**DATA, "log": location}), folder / "dataset").frame("train").collect()


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "txt", "ndjson", "arrow", "delta", "folder", "hive", "glob"])
def test_every_format_gives_the_same_data_set(tmp_path: Path, expected: pl.DataFrame, kind: str) -> None:
    location, format = write(tmp_path, kind)
    dataset = prepare(DataConfig.model_validate({**DATA, "log": location, "format": format}), tmp_path / "dataset")
    assert_frame_equal(dataset.frame("train").collect().drop("key:time"), expected.drop("key:time"))
    assert dataset.encoder.vocabulary("user")["value"].to_list() == ["007", "8", "9"]
    if kind == "hive":
        assert "part" in scan_files(location).frame.collect_schema()


def test_libsvm_and_libffm(tmp_path: Path) -> None:
    (tmp_path / "log.svm").write_text("1 1:0.5 7:2 # note\n\n0 3:1\n1\n0 1:1\n")
    (tmp_path / "log.ffm").write_text("1 0:1:0.5 1:7:2\n0 0:3:1\n")
    svm = scan_files(str(tmp_path / "log.svm")).frame.collect()
    assert svm.rows()[:3] == [("1", ["1", "7"], [0.5, 2.0]), ("0", ["3"], [1.0]), ("1", [], [])]
    assert scan_files(str(tmp_path / "log.ffm")).frame.collect()["features"].to_list() == [["0:1", "1:7"], ["0:3"]]
    config = DataConfig.model_validate(
        {
            "log": str(tmp_path / "log.svm"),
            "split": {"by": "random", "valid": 0, "test": 0},
            "tasks": {"y": {"column": "label"}},
            "features": {"x": {"kind": "bag", "column": "features", "weights": "values"}},
        }
    )
    train = prepare(config, tmp_path / "dataset").frame("train").collect()
    assert train["x:weights"].to_list() == [[0.5, 2.0], [1.0], [], [1.0]]


def test_numbers_in_text_that_are_none_are_refused_not_guessed(tmp_path: Path) -> None:
    lines = ["user,time,click,price", *(f"0{i},{i},{i % 2},{i}.5" for i in range(300)), "x,300,1,cheap"]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    data = {**DATA, "features": {"user": {"kind": "id"}, "price": {"kind": "number"}}, "log": str(tmp_path / "log.csv")}
    dataset = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    assert dataset.profile["refused"] == {"price: no number": 1}
    assert "00" in dataset.encoder.vocabulary("user")["value"]


def joined(folder: Path, side: pl.DataFrame, **keys: Any) -> pl.DataFrame:
    LOG.write_parquet(folder / "log.parquet")
    side.write_csv(folder / "users.csv")
    join = {"table": str(folder / "users.csv"), "on": "user", **keys}
    features = {"user": {"kind": "id"}, "group": {"kind": "id"}}
    config = {**DATA, "features": features, "log": str(folder / "log.parquet"), "joins": [join]}
    return scan(Plan.of(DataConfig.model_validate(config))).frame.collect()


def test_a_side_table_is_joined_by_key(tmp_path: Path) -> None:
    rows = joined(tmp_path, pl.DataFrame({"user": ["8", "007"], "group": ["b", "a"]}))
    assert rows["group"].to_list() == ["a", "b", None, None] * 10
    assert rows[":row"].to_list() == list(range(40))


def test_a_side_table_is_joined_as_of_the_time(tmp_path: Path) -> None:
    start = 1_700_000_000
    side = pl.DataFrame(
        {"user": ["007", "8", "007"], "since": [start + 20, start, start + 4], "group": ["late", "b", "early"]}
    )
    rows = joined(tmp_path, side, time="since")
    expected = [
        None if user != "007" and user != "8" else "b" if user == "8" else
        "late" if time >= start + 20 else "early" if time >= start + 4 else None
        for user, time in LOG.select("user", "time").iter_rows()
    ]  # fmt: skip
    assert rows["group"].to_list() == expected
    assert rows[":row"].to_list() == list(range(40))


def test_faults_of_side_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"users\.csv has 2 rows for user = '8'"):
        joined(tmp_path, pl.DataFrame({"user": ["8", "8"], "group": ["a", "b"]}))
    with pytest.raises(UserError, match=r"users\.csv has no column 'user' to join on"):
        joined(tmp_path, pl.DataFrame({"name": ["8"], "group": ["a"]}))


def test_a_format_that_no_suffix_tells(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1\n")
    with pytest.raises(UserError, match="set the key `format`"):
        scan_files(str(tmp_path / "log"))
