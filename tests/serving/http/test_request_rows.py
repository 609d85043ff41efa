"""Rows of requests: read as Polars reads them, refused before they take memory."""

import io
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from serving.http.request_rows import Limits, read_arrow, read_json

SMALL = Limits(rows=100)


def stream(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


EVERY_TYPE = pa.table(
    {
        "int": pa.array([1, None, 3]),
        "float": [1.5, float("nan"), None],
        "text": ["a", None, "ü" * 40],
        "view": pa.array(["short", "a string that is longer than twelve bytes", None], pa.string_view()),
        "word": pa.array(["x", "y", None]).dictionary_encode(),
        "bag": [["a", "b"], [], None],
        "vector": pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2)),
        "when": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
        "flag": [True, False, None],
        "none": pa.nulls(3),
        "record": [{"a": 1}, None, {"a": 2}],
    }
)


def bombs() -> dict[str, tuple[str, bytes]]:
    """Small bodies that used to take gigabytes, or many times their size: kind and content by name."""
    rows, zeros = 10_000, np.zeros(2_000_000)
    one = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 1_000_000])
    tables = {
        "rows": pa.table({f"c{i}": zeros for i in range(10)}),
        "items": pa.table({"c": pa.array([zeros.tolist()])}),
        "text": pa.table({"c": ["x" * 100_000_000]}),
        "dictionary": pa.table({"c": one}),
        "columns": pa.table({f"c{i}": pa.nulls(rows) for i in range(2000)}),
    }
    arrow = {name: ("arrow", stream(table, compression="zstd")) for name, table in tables.items()}
    texts = {
        "empty objects": '{"rows":[' + ",".join(["{}"] * 1_000_000) + "]}",
        "empty lists": '{"rows":[{"a":[' + ",".join(["[]"] * 1_000_000) + "]}]}",
        "keys": '{"rows":[' + ",".join(f'{{"k{i}":1}}' for i in range(rows)) + "]}",
        "inner keys": '{"rows":[' + ",".join(f'{{"a":{{"k{i}":1}}}}' for i in range(rows)) + "]}",
        "unknown keys": "{" + ",".join(f'"{i}":1' for i in range(500_000)) + "}",
        "wrong rows": '{"rows":[' + ",".join(["1"] * 250_000) + "]}",
        "depth": '{"rows":[{"a":' + "[" * 200_000 + "]" * 200_000 + "}]}",
    }
    return arrow | {name: ("json", text.encode()) for name, text in texts.items()}


MEASURE = """
import pathlib, sys
from fastapi import HTTPException
from serving.http.request_rows import Limits, read_arrow, read_json

def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM:")) * 1024

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    content = path.read_bytes()
    before = peak()
    try:
        (read_arrow if path.suffix == ".arrow" else read_json)(content, Limits())
    except HTTPException:
        pass
    else:
        sys.exit(f"{path.name} was read")
    if (taken := peak() - before) > 3 * len(content) + (64 << 20):
        sys.exit(f"{path.name} of {len(content)} bytes took {taken}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_bombs_are_refused_before_they_take_memory(tmp_path):
    for name, (kind, content) in bombs().items():
        (tmp_path / f"{name}.{kind}").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zstd"}, {"compression": "lz4"}, {"emit_dictionary_deltas": True}]
)
def test_arrow_of_every_type_is_read_as_polars_reads_it(options):
    read = read_arrow(stream(EVERY_TYPE, **options), SMALL)
    assert_frame_equal(read, pl.from_arrow(EVERY_TYPE).with_columns(pl.col("word").cast(pl.String)))


def test_arrow_written_by_polars_is_read():
    frame = pl.DataFrame(
        {"text": ["a", "b" * 50], "bag": [["x" * 20], []], "kind": pl.Series(["u", "v"], dtype=pl.Categorical)}
    )
    for compression in ("uncompressed", "lz4", "zstd"):
        sink = io.BytesIO()
        frame.write_ipc_stream(sink, compression=compression)
        assert_frame_equal(read_arrow(sink.getvalue(), SMALL), frame.with_columns(pl.col("kind").cast(pl.String)))


@pytest.mark.parametrize(
    ("table", "status", "sentence"),
    [
        (pa.table({"a": range(101)}), 413, "101 rows are more than 100"),
        (pa.table({f"c{i}": [1] for i in range(1001)}), 413, "more than 1000 columns"),
        (pa.table({"a": pa.array([[[[[1]]]]])}), 413, "nests more than 4 levels"),
        (pa.table({"a": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))}), 400, "type map"),
        (pa.table({"a": pa.array([1, 2]).dictionary_encode()}), 400, "other values than strings"),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), 400, "the same name"),
        (pa.table({"a": [1]}).replace_schema_metadata({"k": "v" * (2 << 20)}), 413, "names and metadata"),
    ],
)
def test_arrow_beyond_a_limit_is_refused_in_one_sentence(table, status, sentence):
    with pytest.raises(HTTPException, match=sentence) as refused:
        read_arrow(stream(table), SMALL)
    assert refused.value.status_code == status


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data(), options=st.sampled_from([{}, {"compression": "zstd"}, {"compression": "lz4"}]))
def test_mutated_arrow_is_read_or_refused(data, options):
    whole = bytearray(stream(EVERY_TYPE, **options))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)):
        whole[at] = value
    mutated = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(HTTPException):
        assert read_arrow(mutated, SMALL).height <= SMALL.rows


VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
COLUMN = (
    st.lists(VALUES)
    | st.lists(st.none() | st.text())
    | st.lists(st.none() | st.lists(st.none() | st.text(), max_size=3))
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(columns=st.dictionaries(st.text(max_size=4), COLUMN, min_size=1, max_size=4))
def test_json_is_read_as_polars_reads_python(columns):
    height = max(map(len, columns.values()))
    rows = [{name: values[i] for name, values in columns.items() if i < len(values)} for i in range(height)]
    try:
        expected = pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError):
        return
    _, frame = read_json(json.dumps({"rows": rows}, ensure_ascii=False).encode("utf-8", "replace"), SMALL)
    assert_frame_equal(frame, expected, check_column_order=False, check_row_order=True)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    content=st.lists(st.sampled_from([*'{}[],:"\\', '{"rows":[{"a":', "1", "null", "NaN", "1e999", "a"]), max_size=30)
)
def test_json_of_pieces_is_read_or_refused(content):
    with suppress(HTTPException):
        read_json("".join(content).encode(), SMALL)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("NaN", "'a'"),
        ("1e999", "'a'"),
        ("[1.0, -Infinity]", "'a'"),
        (r'"\ud800"', "Invalid JSON"),
        ("[[1]]", "a list inside a list"),
        ('{"b": 1}', "'a' is an object"),
        ('[1, {"b": 1}]', "a value is an object"),
        ("1" * 50, r"rows\[0\]: a is a whole number beyond 128 bits"),
        ("[" + "1" * 50 + "]", "a is a whole number beyond 128 bits"),
    ],
)
def test_values_that_cannot_be_read_are_refused_by_name(value, where):
    with pytest.raises(HTTPException, match=where) as refused:
        read_json(f'{{"rows": [{{"a": {value}}}]}}'.encode(), SMALL)
    assert refused.value.status_code == 422


def test_the_column_and_the_row_at_fault_are_named():
    rows = [{"a": 1, 'the "user"': {"id": 1}}]
    with pytest.raises(HTTPException, match="'the __user__' is an object: send its fields as columns"):
        read_json(json.dumps({"rows": rows}).encode(), SMALL)
    with pytest.raises(HTTPException, match=r"rows\[1\]: a is a whole number"):
        read_json(json.dumps({"rows": [{"a": 1}, {"a": 10**40}, {"a": None}]}).encode(), SMALL)


def test_rows_without_a_column_are_refused_and_not_lost():
    with pytest.raises(HTTPException, match="no row has a column"):
        read_json(b'{"rows": [{}, {}]}', SMALL)
    assert read_json(b'{"rows": [{}, {"a": 1}]}', SMALL)[1]["a"].to_list() == [None, 1]
    assert len(read_json(b'{"rows": []}', SMALL)[1]) == 0


def test_brackets_and_quotes_inside_strings_are_no_structure():
    text = '[[[{{{"\\"' + "\\" * 5 + "]],,::" * 200_000
    _, frame = read_json(json.dumps({"rows": [{"a": text}]}).encode(), SMALL)
    assert frame["a"].to_list() == [text]
