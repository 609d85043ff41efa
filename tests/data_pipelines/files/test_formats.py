"""Files of one log that differ, late keys of NDJSON, and formats that no suffix names."""

import json
from pathlib import Path

import polars as pl
import pytest

from data_pipelines.errors import UserError
from data_pipelines.files.formats import scan_files


def read(path: Path, needed: frozenset[str] | None = None) -> pl.DataFrame:
    return scan_files(str(path), needed=needed).frame.collect()


def write(frame: pl.DataFrame, path: Path) -> None:
    {".parquet": frame.write_parquet, ".arrow": frame.write_ipc, ".ndjson": frame.write_ndjson}[path.suffix](path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".ndjson"])
def test_files_of_a_folder_may_drift(tmp_path: Path, suffix: str) -> None:
    days = [
        pl.DataFrame({"a": pl.Series([1], dtype=pl.Int32), "b": ["x"]}),
        pl.DataFrame({"b": ["y"], "a": [2**40]}),
        pl.DataFrame({"a": [2.5], "b": ["z"], "new": ["n"]}),
    ]
    for number, day in enumerate(days):
        write(day, tmp_path / f"{number}{suffix}")
    rows = read(tmp_path)
    assert rows.rows() == [(1.0, "x", None), (float(2**40), "y", None), (2.5, "z", "n")]


def test_whole_numbers_beside_text_become_text(tmp_path: Path) -> None:
    pl.DataFrame({"a": [17]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"a": ["A7"]}).write_parquet(tmp_path / "2.parquet")
    assert read(tmp_path)["a"].to_list() == ["17", "A7"]


def test_types_that_do_not_fit_are_one_sentence_where_they_matter(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1], "tags": [["x"]]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"a": [2], "tags": [3]}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(UserError, match=r"'tags' is List\(String\) in .*1\.parquet and Int64 in .*2\.parquet"):
        read(tmp_path)
    assert read(tmp_path, frozenset({"a"})).rows() == [(1,), (2,)]


def test_keys_and_fractions_of_ndjson_may_come_late(tmp_path: Path) -> None:
    with (tmp_path / "log.ndjson").open("w") as file:
        for n in range(15_000):
            late = {"campaign": f"c{n % 3}"} if n >= 12_000 else {}
            file.write(
                json.dumps({"item": n if n < 11_000 else f"A{n}", "price": 5 if n < 13_000 else 5.5} | late) + "\n"
            )
    rows = read(tmp_path / "log.ndjson")
    assert rows.row(0) == ("0", 5.0, None)
    assert rows.row(14_999) == ("A14999", 5.5, "c2")


def test_lines_that_are_not_json_are_refused_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "log.ndjson").write_text('{"a": 1}\n{"a": \n[1]\n\n{"a": 2.5}\n')
    scan = scan_files(str(tmp_path / "log.ndjson"))
    assert scan.frame.collect()["a"].to_list() == [1.0, 2.5]
    assert scan.refused["line"].to_list() == [2, 3]
    (tmp_path / "none.ndjson").write_text("no json\n")
    with pytest.raises(UserError, match="no line that is a JSON object: its first line is 'no json'"):
        scan_files(str(tmp_path / "none.ndjson"))


def test_the_first_bytes_tell_what_no_suffix_does(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": ["1", "2"], "b": ["x", "y"]})
    frame.write_parquet(tmp_path / "one")
    frame.write_ipc(tmp_path / "two")
    frame.write_ndjson(tmp_path / "three")
    frame.write_csv(tmp_path / "four", separator="|")
    for name in ("one", "two", "three", "four"):
        assert read(tmp_path / name).rows() == frame.rows()
    frame.write_csv(tmp_path / "five.csv")
    frame.write_parquet(tmp_path / "six.parquet")
    with pytest.raises(UserError, match="holds files of several formats"):
        read(tmp_path)


def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read: it is damaged"):
        read(tmp_path / "bad.parquet")
