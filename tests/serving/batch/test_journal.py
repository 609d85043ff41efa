"""What happened to a job's files between two attempts is noticed, and scored again."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from data_pipelines.errors import UserError
from serving.artifact.artifact import Artifact
from serving.batch import inputs
from serving.batch.batch_job import ParkedError, run_job
from serving.batch.options import JobOptions, JobResult

QUARANTINED = "quarantine/part-00000.parquet"


@pytest.fixture
def artifact(exported: Path) -> Artifact:
    return Artifact.open(exported)


@pytest.fixture
def rows(tiny_log: Path, tmp_path: Path) -> Path:
    """The log without its labels as CSV, so that it is rewritten first; one row in 500 has a bad price."""
    path = tmp_path / "in" / "rows.csv"
    path.parent.mkdir()
    frame = pl.read_parquet(tiny_log).drop("click", "rating").with_columns(pl.col("tags").list.join(","))
    price = pl.when(pl.int_range(pl.len()) % 500 == 3).then(pl.lit("cheap")).otherwise(pl.col("price"))
    frame.with_columns(price.alias("price")).write_csv(path)
    return path


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 250)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parked(artifact: Artifact, rows: Path, out: Path) -> Path:
    """The work folder of a job that was stopped when at least four of its eight parts were done."""
    stop, seen = threading.Event(), list[int]()

    def progress(done: int, _: int) -> None:
        seen.append(done)
        if sum(seen) >= 1000:
            stop.set()

    with pytest.raises(ParkedError):
        run_job(artifact, str(rows), out, threads=1, progress=progress, stop=stop)
    return out.parent / f".{out.name}.job"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_another(path: Path) -> None:
    shutil.copy(path.with_name("part-00001.parquet"), path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "truncated": truncate,
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.fixture(scope="module")
def whole(exported: Path, tiny_log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the scores of an undisturbed job."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "PART_ROWS", 250)
        path = rows.__wrapped__(tiny_log, folder)
        run_job(Artifact.open(exported), str(path), folder / "out")
    return files(folder / "out")


def resumed(artifact: Artifact, rows: Path, out: Path, whole: dict[str, bytes]) -> JobResult:
    """Resume a job; its scores are those of an undisturbed one, whose input lay elsewhere."""
    result = run_job(artifact, str(rows), out)
    assert (result.rows_in, result.rows_out, result.quarantined) == (2000, 1996, 4)
    for name in whole.keys() | files(out).keys():
        if name.endswith(".parquet"):
            assert (out / name).read_bytes() == whole[name], name
    return result


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["part-00000.parquet", QUARANTINED])
def test_a_finished_part_that_was_damaged_is_scored_again(artifact, rows, tmp_path, whole, damage, name):
    work = parked(artifact, rows, tmp_path / "out")
    DAMAGES[damage](work / name)
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored == 1


def test_a_part_replaced_by_another_is_scored_again(artifact, rows, tmp_path, whole):
    work = parked(artifact, rows, tmp_path / "out")
    replace_by_another(work / "part-00000.parquet")
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_made_again(artifact, rows, tmp_path, whole, damage):
    work = parked(artifact, rows, tmp_path / "out")
    DAMAGES[damage](work / "ledger.ndjson")
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored <= 5


@pytest.mark.parametrize("change", [("rows_in", 249), ("rows_out", 250), ("quarantined", 0), ("part", 7), ("part", 99)])
def test_an_entry_that_says_something_else_than_its_files_is_no_entry(artifact, rows, tmp_path, whole, change):
    work = parked(artifact, rows, tmp_path / "out")
    terms, first, *others = (work / "ledger.ndjson").read_text().splitlines()
    entry = json.loads(first) | dict([change])
    (work / "ledger.ndjson").write_text("\n".join([terms, json.dumps(entry), *others]) + "\n")
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored == 1


def test_an_entry_cannot_name_files_elsewhere(artifact, rows, tmp_path, whole):
    work = parked(artifact, rows, tmp_path / "out")
    (tmp_path / "mine.parquet").write_bytes((work / "part-00000.parquet").read_bytes())
    ledger = work / "ledger.ndjson"
    ledger.write_text(ledger.read_text().replace("part-00000.parquet", "../mine.parquet"))
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored == 1
    assert (tmp_path / "mine.parquet").exists()


def test_the_first_terms_damaged_nothing_of_an_unknown_job_is_used(artifact, rows, tmp_path, whole):
    work = parked(artifact, rows, tmp_path / "out")
    ledger = work / "ledger.ndjson"
    ledger.write_bytes(b"{" + ledger.read_bytes())
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored >= 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_rewritten_input_is_rewritten_again_when_it_was_damaged(artifact, rows, tmp_path, whole, damage):
    work = parked(artifact, rows, tmp_path / "out")
    (staged,) = (path for path in work.rglob(".stage*/*.parquet"))
    DAMAGES[damage](staged)
    assert resumed(artifact, rows, tmp_path / "out", whole).rescored == 0


def test_what_does_not_belong_to_the_scores_does_not_stay_with_them(artifact, rows, tmp_path, whole):
    work = parked(artifact, rows, tmp_path / "out")
    shutil.copy(work / "part-00000.parquet", work / "part-00099.parquet")
    resumed(artifact, rows, tmp_path / "out", whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["part-00002.parquet", QUARANTINED, "ledger.ndjson", "manifest.json"])
def test_finished_scores_that_were_damaged_are_told_and_left_alone(artifact, rows, tmp_path, damage, name):
    out = tmp_path / "out"
    run_job(artifact, str(rows), out)
    DAMAGES[damage](out / name)
    before = files(out)
    with pytest.raises(UserError, match=r"remove .*out to score it again|has no manifest"):
        run_job(artifact, str(rows), out)
    assert files(out) == before


def test_a_part_that_changes_before_the_job_is_sealed_is_told(artifact, rows, tmp_path, whole):
    out, seen = tmp_path / "out", list[int]()

    def progress(done: int, _: int) -> None:
        seen.append(done)
        if sum(seen) == 2000:
            flip(tmp_path / ".out.job" / "part-00000.parquet")

    with pytest.raises(UserError, match=r"part-00000\.parquet.*changed"):
        run_job(artifact, str(rows), out, JobOptions(), progress=progress)
    assert not out.exists()
    assert resumed(artifact, rows, out, whole).rescored == 1
