"""Public data sets in the form in which their publishers wrote them."""

import datetime
from pathlib import Path

import polars as pl
import pytest

from data_pipelines.errors import UserError
from data_pipelines.importers import criteo, frappe, movielens


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::20::5::978300760\n2::10::3::978302109\r\n1::10::1::978301968\n")
    (folder / "users.dat").write_text("1::F::1::10::02139\n2::M::56::16::70072-1234\n")
    movies = "10::Se7en: a story (1995)::Crime|Thriller\n20::Misérables, Les (1958)::Drama\n30::Nothing::Drama\n"
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    return folder


def test_movielens_joins_and_keeps_the_order(ml: Path, tmp_path: Path) -> None:
    assert movielens.convert(ml, tmp_path / "log.parquet") == 3
    log = pl.read_parquet(tmp_path / "log.parquet")
    assert log["movie_id"].to_list() == [20, 10, 10]
    assert log.row(0, named=True) == {
        "user_id": 1,
        "movie_id": 20,
        "rating": 5,
        "timestamp": datetime.datetime(2000, 12, 31, 22, 12, 40),
        "gender": "F",
        "age": 1,
        "occupation": 10,
        "zip": "02139",
        "title": "Misérables, Les",
        "genres": ["Drama"],
        "year": 1958,
    }
    assert log["title"][1] == "Se7en: a story"
    assert log["genres"][2].to_list() == ["Crime", "Thriller"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("users.dat", None, r"users.dat is not there"),
        ("movies.dat", "", r"movies.dat is empty"),
        ("ratings.dat", "1::20::5\n", r"ratings.dat, line 1 is not user_id::movie_id::rating::timestamp"),
        ("ratings.dat", "1::20::5::9\n1::x::5::9\n", r"ratings.dat, line 2 is not"),
    ],
)
def test_movielens_names_what_is_wrong(ml: Path, tmp_path: Path, file: str, content: str | None, message: str) -> None:
    (ml / file).unlink()
    if content is not None:
        (ml / file).write_text(content)
    with pytest.raises(UserError, match=message):
        movielens.convert(ml, tmp_path / "log.parquet")
    assert not (tmp_path / "log.parquet").exists()


def test_criteo_keeps_what_is_missing_missing(tmp_path: Path) -> None:
    full = "1\t" + "\t".join(str(i) for i in range(13)) + "\t" + "\t".join(f"{i:08x}" for i in range(26))
    holes = "0" + "\t" * 39
    (tmp_path / "train.txt").write_text(full + "\n" + holes + "\n")
    assert criteo.convert(tmp_path / "train.txt", tmp_path / "log.parquet") == 2
    log = pl.read_parquet(tmp_path / "log.parquet")
    assert log["label"].to_list() == [1, 0]
    assert log["order"].to_list() == [0, 1]
    assert log.row(0, named=True)["C26"] == "00000019"
    assert all(value is None for name, value in log.row(1, named=True).items() if name not in ("order", "label"))


@pytest.mark.parametrize("content", ["", "1\t2\t3\n", "7" + "\t" * 39 + "\n", "a" + "\t" * 39 + "\n"])
def test_criteo_refuses_another_format(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(UserError, match=r"train\.txt"):
        criteo.convert(tmp_path / "train.txt", tmp_path / "log.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


def test_frappe_remembers_the_split(tmp_path: Path) -> None:
    for split, rows in (("train", 3), ("valid", 2), ("test", 1)):
        (tmp_path / f"{split}.csv").write_text("label,user,item\n" + "1,2,3\n" * rows)
    assert frappe.convert(tmp_path, tmp_path / "log.parquet") == 6
    assert pl.read_parquet(tmp_path / "log.parquet")["split"].to_list() == ["train"] * 3 + ["valid"] * 2 + ["test"]


def test_frappe_needs_three_files_alike(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").write_text("label,user,item\n1,2,3\n")
    with pytest.raises(UserError, match=r"test\.csv is not there"):
        frappe.convert(tmp_path, tmp_path / "log.parquet")
    (tmp_path / "test.csv").write_text("label,user\n1,2\n")
    with pytest.raises(UserError, match="other columns"):
        frappe.convert(tmp_path, tmp_path / "log.parquet")
