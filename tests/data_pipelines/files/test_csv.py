"""Delimited text of every kind is the same rows, and what is not a row is refused with its line."""

import bz2
import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_pipelines.errors import Notice, UserError
from data_pipelines.files.csv import CsvFormat
from data_pipelines.files.formats import scan_files

NAMES = "user,item,price"
ROWS = [NAMES, *(f"u{n % 7},{n:03},{n}.5" for n in range(500))]
TEXT = "\n".join(ROWS) + "\n"


def read(path: Path, format: CsvFormat | None = None) -> tuple[pl.DataFrame, list[tuple[int | None, str, str]]]:
    scan = scan_files(str(path), format)
    return scan.frame.collect(), [tuple(line) for line in scan.refused.select("line", "text", "reason").rows()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    path = tmp_path_factory.mktemp("plain") / "log.csv"
    path.write_text(TEXT)
    return read(path)[0]


def test_every_column_is_text_as_it_stands(plain: pl.DataFrame) -> None:
    assert plain.shape == (500, 3)
    assert plain.row(7) == ("u0", "007", "7.5")


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("bom.csv", TEXT.encode("utf-8-sig"), None),
        ("crlf.csv", TEXT.replace("\n", "\r\n").encode(), None),
        ("mixed.csv", TEXT.replace("\n", "\r\n", 200).encode(), None),
        ("gz.csv.gz", gzip.compress(TEXT.encode()), None),
        ("bz2.csv.bz2", bz2.compress(TEXT.encode()), None),
        ("utf16.csv", TEXT.encode("utf-16"), None),
        ("utf16le.csv", TEXT.encode("utf-16-le"), CsvFormat(encoding="utf-16-le")),
        ("tabs.tsv", TEXT.replace(",", "\t").encode(), None),
        ("typed.inter", TEXT.replace(NAMES, "user:token,item:token,price:float").replace(",", "\t").encode(), None),
        ("blanks.csv", TEXT.replace(NAMES, " user , item, price").encode(), None),
        ("semicolons.csv", TEXT.replace(",", ";").replace(".5", ",5").encode(), CsvFormat(delimiter=";", decimal=",")),
        ("quoted.csv", "".join('"' + line.replace(",", '","') + '"\n' for line in ROWS).encode(), None),
        ("headless.csv", TEXT.split("\n", 1)[1].encode(), CsvFormat(header=False, columns=("user", "item", "price"))),
        ("no-suffix", TEXT.encode(), None),
        ("no-line-break-at-the-end.csv", TEXT.rstrip("\n").encode(), None),
    ],
)  # fmt: skip
def test_the_same_rows_in_disguise(
    tmp_path: Path, plain: pl.DataFrame, name: str, content: bytes, format: CsvFormat | None
) -> None:
    (tmp_path / name).write_bytes(content)
    rows, refused = read(tmp_path / name, format)
    assert refused == []
    assert_frame_equal(rows, plain)


def test_lines_of_another_length_are_refused_one_by_one(tmp_path: Path, plain: pl.DataFrame) -> None:
    lines = ROWS.copy()
    lines[123] += ",more"
    lines[300] = "short"
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.csv").write_text("")
    rows, refused = read(tmp_path)
    assert len(rows) == 498
    assert refused == [
        (124, ROWS[123] + ",more", "4 fields instead of 3"),
        (301, "short", "1 fields instead of 3"),
    ]


def test_readers_that_keep_no_record_of_refused_lines_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n")
    scan = scan_files(str(tmp_path / "a.csv"))
    with pytest.warns(Notice, match=r"1 lines are left out because they are not rows; the first is line 3 of .*a\.csv"):
        assert len(scan.rows("a.csv").collect()) == 1


def test_quotes_and_line_breaks_inside_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,"two\nlines"\n2,5" disk\n3,"say ""x"", ok"\n')
    rows, refused = read(tmp_path / "a.csv")
    assert rows.rows() == [("1", "two\nlines"), ("2", '5" disk'), ("3", 'say "x", ok')]
    assert refused == []


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,"never closed\n' + "".join(f"{n},x\n" for n in range(2000)))
    with pytest.raises(UserError, match=r"starts with 'never closed.*set the key format\.quote to null"):
        read(tmp_path / "a.csv")
    rows, _ = read(tmp_path / "a.csv", CsvFormat(quote=None))
    assert rows["b"].to_list()[:2] == ['"never closed', "x"]


def test_bytes_that_are_not_utf8_are_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,x\n2,\xff\xfe\n3,z\n")
    rows, refused = read(tmp_path / "a.csv")
    assert rows["a"].to_list() == ["1", "3"]
    assert [reason for _, _, reason in refused] == ["not UTF-8 (set format.encoding if the whole file is not)"]


def test_a_file_of_another_encoding_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("Größe,b\n1,2\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"a\.csv is not utf-8: set the key format\.encoding"):
        read(tmp_path / "a.csv")
    rows, _ = read(tmp_path / "a.csv", CsvFormat(encoding="cp1252"))
    assert rows.columns == ["Größe", "b"]
    (tmp_path / "b.csv").write_bytes("a,b\n1,2\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="has NUL bytes"):
        read(tmp_path / "b.csv")


def test_only_empty_files_and_only_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UserError, match="every file of it is empty"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("a,b\n")
    assert read(tmp_path)[0].shape == (0, 2)


def test_columns_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("b,a,c\n4,3,5\n")
    assert read(tmp_path)[0].rows() == [("1", "2", None), ("3", "4", "5")]


def test_decimal_commas_leave_other_text_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("p;t\n1.234,50;a,b\n-7,5;1.2.3\n12;x\n")
    rows, _ = read(tmp_path / "a.csv", CsvFormat(delimiter=";", decimal=","))
    assert rows.rows() == [("1234.50", "a,b"), ("-7.5", "1.2.3"), ("12", "x")]


FIELD = st.text(st.characters(exclude_characters="\0\r", exclude_categories=("Cs",)), max_size=8)


@given(st.lists(st.lists(FIELD, min_size=2, max_size=2), min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """Whatever the fields hold: quotes, line breaks, delimiters, blanks."""
    path = tmp_path_factory.mktemp("any") / "log.csv"
    frame = pl.DataFrame(rows, schema=["a", "b"], orient="row")
    frame.write_csv(path, quote_style="always")
    scan = scan_files(str(path))
    assert scan.refused.is_empty()
    expected = frame.with_columns(pl.all().replace("", None))
    assert_frame_equal(scan.frame.collect(), expected)


def test_lines_that_another_delimiter_divides_are_refused_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user;item\n1;2\n")
    with pytest.raises(
        UserError, match=r"one column, 'user;item': set the key `format: \{kind: csv, delimiter: \";\"\}`"
    ):
        scan_files(str(tmp_path / "log.csv"), needed=frozenset({"user"}))
