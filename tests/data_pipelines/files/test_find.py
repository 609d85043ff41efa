"""Which files a path, a folder or a glob means."""

from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from data_pipelines.files.find import find_files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n")


def names(folder: Path, location: str = "") -> list[str]:
    return [str(Path(name).relative_to(folder)) for name in find_files(str(folder / location))]


@pytest.mark.parametrize(
    "leftover",
    [
        *(".ipynb_checkpoints/monday-checkpoint.csv", "_temporary/0/attempt_1/part-0.csv", "_SUCCESS", "_metadata"),
        *(
            ".hidden.csv",
            ".git/a.csv",
            "monday.csv~",
            "monday~.csv",
            "#monday.csv#",
            "monday.csv.tmp",
            "monday.csv.bak",
        ),
        *("monday.csv.swp", "monday.csv.crdownload", ".part-0.csv.crc", "monday.csv.inprogress"),
    ],
)
def test_what_other_tools_leave_behind_is_no_part_of_a_log(tmp_path: Path, leftover: str) -> None:
    touch(tmp_path, "monday.csv", "day=2/part.csv", "_day=3/part.csv", leftover)
    expected = ["_day=3/part.csv", "day=2/part.csv", "monday.csv"]
    assert names(tmp_path) == expected
    assert names(tmp_path, "**/*") == expected


@pytest.mark.parametrize("name", ["clicks[1].csv", "what?.csv", "a*b.csv", "runs [final]/part.csv", "{a}/b.csv"])
def test_a_name_that_exists_is_taken_literally(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "clicks1.csv", "other/part.csv")
    assert names(tmp_path, name) == [name]


def test_a_glob_below_a_folder_with_brackets(tmp_path: Path) -> None:
    touch(tmp_path, "runs [final]/1.csv", "runs [final]/2.csv", "runs [final]/3.txt")
    assert names(tmp_path, "runs [final]/*.csv") == ["runs [final]/1.csv", "runs [final]/2.csv"]


def test_nothing_there_and_only_hidden_files_are_two_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there: give the path"):
        find_files(str(tmp_path / "nowhere.csv"))
    touch(tmp_path, "only/_temporary/a.csv")
    with pytest.raises(UserError, match=r"only hidden or temporary files, such as .*_temporary/a\.csv"):
        find_files(str(tmp_path / "only"))


def test_an_address_stays_as_it_is() -> None:
    assert find_files("s3://bucket/log/*.parquet") == ["s3://bucket/log/*.parquet"]
