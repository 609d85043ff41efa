"""Records in batches that are sorted by row: read once in order, or for any range of rows."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.disk.by_row import ByRow, ByRowFiles, RecordFile

FIELDS = (("start", "<u4"), ("level", "<f4"))


@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, 30), max_size=20), min_size=1, max_size=6),
    split=st.integers(1, 6),
    bounds=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_files_give_the_records_of_any_range_of_rows(
    batches: list[list[int]], split: int, bounds: tuple[int, int]
) -> None:
    low, high = min(bounds), max(bounds)
    files, expected = [], []
    with TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, len(batches), split)):
            records = ByRow(Path(folder, str(number)), FIELDS)
            for batch in batches[start : start + split]:
                rows = np.array(sorted(batch), np.uint32)
                records.add(rows, start=rows + 1, level=rows / 2)
                expected += [(row, row + 1 + 100 * number, row / 2) for row in sorted(batch) if low <= row <= high]
            files.append(RecordFile(Path(folder, str(number)), records.close(), (("start", 100 * number),)))
        found = ByRowFiles(FIELDS, tuple(files)).take(np.array([low, high]))
    assert found.tolist() == expected


def test_records_of_one_file_are_taken_once_in_the_order_of_the_rows(tmp_path: Path) -> None:
    records = ByRow(tmp_path / "records", FIELDS)
    for batch in ([0, 3, 5], [], [1, 3, 9]):
        rows = np.array(batch, np.uint32)
        records.add(rows, start=rows, level=rows)
    assert records.take(np.arange(4))["row"].tolist() == [0, 3, 1, 3]
    assert records.take(np.arange(4, 10))["row"].tolist() == [5, 9]
