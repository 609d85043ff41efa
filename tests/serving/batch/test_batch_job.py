"""Batch jobs: every row once, in order, whatever happens on the way."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from serving.artifact.artifact import Artifact
from serving.batch import batch_job, inputs, workers
from serving.batch.batch_job import ParkedError, run_job
from serving.batch.options import JobOptions
from serving.batch.scorer import Scorer

LONG_S = 240
"""For what comes at once on an idle machine; only a hang takes longer."""


@pytest.fixture
def artifact(exported: Path) -> Artifact:
    return Artifact.open(exported)


@pytest.fixture
def rows(tiny_log: Path, tmp_path: Path) -> Path:
    """The log without its labels, in row groups of 100."""
    path = tmp_path / "in" / "rows.parquet"
    path.parent.mkdir()
    pl.read_parquet(tiny_log).drop("click", "rating").write_parquet(path, row_group_size=100)
    return path


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PART_ROWS", 250)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def scores(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "part-*.parquet")


def test_scores_come_in_the_order_of_the_input_with_its_keys(artifact, rows, tmp_path):
    result = run_job(artifact, str(rows), tmp_path / "out", JobOptions(logits=True))
    expected = Scorer(artifact).score(pl.read_parquet(rows), logits=True)
    assert scores(tmp_path / "out").select("user", "item").equals(expected.select("user", "item"))
    np.testing.assert_allclose(scores(tmp_path / "out")["click:logit"], expected["click:logit"], atol=1e-6)
    assert (result.rows_in, result.rows_out, result.quarantined) == (2000, 2000, 0)
    assert result.parts == 10  # two row groups of 100 fit into 250 rows


def test_any_number_of_threads_writes_the_same_bytes(artifact, rows, tmp_path):
    for threads in (1, 3):
        run_job(artifact, str(rows), tmp_path / f"out{threads}", threads=threads)
    assert files(tmp_path / "out1") == files(tmp_path / "out3")


@pytest.mark.parametrize("format", ["csv", "ndjson", "ipc", "folder", "glob", "large row group"])
def test_every_way_to_give_the_same_rows_gives_the_same_scores(artifact, rows, tmp_path, format, monkeypatch):
    frame = pl.read_parquet(rows)
    source = tmp_path / "in" / f"rows.{format}"
    match format:
        case "csv":
            frame.with_columns(pl.col("tags").cast(pl.List(pl.String)).list.join(",")).write_csv(source)
        case "ndjson":
            frame.write_ndjson(source)
        case "ipc":
            frame.write_ipc(source)
        case "folder" | "glob":
            source = tmp_path / "many"
            source.mkdir()
            frame.head(700).write_parquet(source / "a.parquet")
            frame.tail(-700).write_parquet(source / "b.parquet")
            source = source / "*.parquet" if format == "glob" else source
        case "large row group":
            source = rows
            monkeypatch.setattr(inputs, "_LARGEST_ROW_GROUP", 50)
    run_job(artifact, str(source), tmp_path / "out")
    run_job(artifact, str(rows), tmp_path / "expected")
    actual, expected = scores(tmp_path / "out"), scores(tmp_path / "expected")
    assert actual["item"].to_list() == expected["item"].to_list()
    np.testing.assert_allclose(actual["click"], expected["click"], atol=1e-6)


def test_text_is_cut_as_the_training_log_was(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("user;item\n1;a\n")
    log = {"log": "log.csv", "tasks": {"click": {"column": "click"}}, "features": {"user": {"kind": "id"}}}
    plan = Plan.of(DataConfig.model_validate({**log, "format": {"kind": "csv", "delimiter": ";"}}))
    (part,) = inputs.Input.find(str(rows), plan).parts(tmp_path / "staged.parquet", plan)
    assert part.scan().collect().to_dict(as_series=False) == {"user": ["1"], "item": ["a"]}


def test_a_job_stopped_between_parts_goes_on_to_the_same_bytes(artifact, rows, tmp_path):
    run_job(artifact, str(rows), tmp_path / "whole")
    stop = threading.Event()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if sum(seen) >= 600:
            stop.set()

    with pytest.raises(ParkedError):
        run_job(artifact, str(rows), tmp_path / "out", threads=1, progress=progress, stop=stop)
    assert not (tmp_path / "out").exists()
    seen.clear()
    run_job(artifact, str(rows), tmp_path / "out", threads=1, progress=lambda done, total: seen.append(done))
    assert seen[0] == 600
    assert sum(seen) == 2000
    assert files(tmp_path / "out") == files(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
from serving.batch import inputs
from serving.artifact.artifact import Artifact
from serving.batch.batch_job import run_job

inputs.PART_ROWS = 250
for kill_after in map(int, sys.argv[4:]):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        report = lambda done, total: os.write(writer, b"." if done else b"")
        run_job(Artifact.open(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), threads=2, progress=report)
        os._exit(0)
    for _ in range(kill_after):
        os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_killed_anywhere_and_started_again_it_ends_in_the_same_bytes(exported, artifact, rows, tmp_path):
    run_job(artifact, str(rows), tmp_path / "whole")
    arguments = [str(exported), str(rows), str(tmp_path / "out"), "0", "1", "3", "3"]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], check=True)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.job" / "ledger.ndjson").read_bytes().count(b"\n") > 5
    run_job(artifact, str(rows), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_ledger_line_cut_short_is_no_entry(artifact, rows, tmp_path):
    run_job(artifact, str(rows), tmp_path / "whole")
    work = tmp_path / ".out.job"
    shutil.copytree(tmp_path / "whole", work)
    (work / "manifest.json").unlink()
    ledger = work / "ledger.ndjson"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    (work / "part-00009.parquet").write_bytes(b"torn")
    run_job(artifact, str(rows), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("started", ["cpu", "cuda (bf16)"])
def test_a_job_is_not_resumed_on_another_device(artifact, rows, tmp_path, monkeypatch, started):
    def on(device: str) -> None:
        """Let jobs that this process computes on its CPU be of another device."""
        monkeypatch.setattr(batch_job, "scoring_device", lambda name: torch.device(device.partition(" ")[0]))
        monkeypatch.setattr(batch_job, "described", lambda place: device)

    stop, other = threading.Event(), {"cpu": "cuda (bf16)"}.get(started, "cpu")
    on(started)
    with pytest.raises(ParkedError):
        run_job(artifact, str(rows), tmp_path / "out", threads=1, stop=stop, progress=lambda *_: stop.set())
    on(other)
    with pytest.raises(UserError, match="started with another device"):
        run_job(artifact, str(rows), tmp_path / "out")
    on("cuda (fp32)")
    with pytest.raises(UserError, match="started with another device"):
        run_job(artifact, str(rows), tmp_path / "out")
    on(started)
    assert run_job(artifact, str(rows), tmp_path / "out").device == started


def test_another_engine_does_not_score_on_a_gpu(artifact, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_job, "scoring_device", lambda name: torch.device("cuda"))
    with pytest.raises(UserError, match="only the threads of this process can score on a GPU"):
        run_job(artifact, str(rows), tmp_path / "out", device="cuda", engine=lambda *_: pytest.fail("made workers"))


@pytest.mark.gpu
def test_scores_on_a_gpu_are_near_those_on_a_cpu_and_the_same_at_any_number_of_threads(artifact, rows, tmp_path):
    options = JobOptions(logits=True)
    run_job(artifact, str(rows), tmp_path / "cpu", options)
    results = [run_job(artifact, str(rows), tmp_path / str(n), options, threads=n, device="cuda") for n in (1, 4)]
    assert {result.device.partition(" ")[0] for result in results} == {"cuda"}
    assert scores(tmp_path / "1").equals(scores(tmp_path / "4"))
    found, expected = (scores(tmp_path / name)["click:logit"].to_numpy() for name in ("1", "cpu"))
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_finished_job_started_again_does_nothing(artifact, rows, tmp_path):
    run_job(artifact, str(rows), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run_job(artifact, str(rows), tmp_path / "out").rows_out == 2000
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_changed_input_options_or_artifact_are_refused(artifact, rows, tmp_path):
    stop = threading.Event()
    with pytest.raises(ParkedError):
        run_job(artifact, str(rows), tmp_path / "out", threads=1, stop=stop, progress=lambda *_: stop.set())
    with pytest.raises(UserError, match="started with another options"):
        run_job(artifact, str(rows), tmp_path / "out", JobOptions(logits=True))
    frame = pl.read_parquet(rows).with_columns(price=pl.col("price") + 1)
    frame.write_parquet(rows, row_group_size=100)
    with pytest.raises(UserError, match="started with another input"):
        run_job(artifact, str(rows), tmp_path / "out")
    run_job(artifact, str(rows), tmp_path / "other")
    with pytest.raises(UserError, match="scores of another job"):
        run_job(artifact, str(rows), tmp_path / "other", JobOptions(logits=True))


def test_two_processes_given_the_same_job_do_not_spoil_it(artifact, rows, tmp_path, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    slow = workers.score_part

    def waiting(*arguments, **options):
        entered.set()
        assert go_on.wait(LONG_S)
        return slow(*arguments, **options)

    monkeypatch.setattr(workers, "score_part", waiting)
    first = threading.Thread(target=run_job, args=(artifact, str(rows), tmp_path / "out"))
    first.start()
    assert entered.wait(LONG_S)
    with pytest.raises(UserError, match="another process is scoring"):
        run_job(artifact, str(rows), tmp_path / "out")
    go_on.set()
    first.join()
    assert len(scores(tmp_path / "out")) == 2000


def test_bad_rows_are_quarantined_with_the_reason_or_scored_as_null(artifact, rows, tmp_path):
    frame = pl.read_parquet(rows).with_columns(
        price=pl.when(pl.int_range(pl.len()) % 500 == 3)
        .then(pl.lit("cheap"))
        .otherwise(pl.col("price").cast(pl.String))
    )
    frame.write_parquet(rows, row_group_size=100)
    result = run_job(artifact, str(rows), tmp_path / "out")
    assert (result.rows_in, result.rows_out, result.quarantined) == (2000, 1996, 4)
    assert len(pl.read_parquet(tmp_path / "out" / "*.parquet")) == 1996
    refused = pl.read_parquet(tmp_path / "out" / "quarantine" / "*.parquet")
    assert refused[":row"].to_list() == [3, 503, 1003, 1503]
    assert set(refused[":reason"]) == {"price: no number"}
    assert refused["price"].to_list() == ["cheap"] * 4
    assert run_job(artifact, str(rows), tmp_path / "all", JobOptions(bad_rows="score")).rows_out == 2000


def test_a_missing_column_and_damaged_parquet_are_said_in_one_sentence(artifact, rows, tmp_path):
    lacking = tmp_path / "in" / "lacking.parquet"
    pl.read_parquet(rows).drop("device").write_parquet(lacking)
    with pytest.raises(UserError, match=r"lacking\.parquet: feature 'device' reads the column 'device'"):
        run_job(artifact, str(lacking), tmp_path / "out1")
    damaged = tmp_path / "in" / "damaged.parquet"
    content = bytearray(rows.read_bytes())
    content[100:200] = b"\xff" * 100
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.parquet cannot be read"):
        run_job(artifact, str(damaged), tmp_path / "out2", threads=1)  # or other parts may be done before
    truncated = tmp_path / "in" / "truncated.parquet"
    truncated.write_bytes(rows.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"truncated\.parquet cannot be read"):
        run_job(artifact, str(truncated), tmp_path / "out3")
    with pytest.raises(UserError, match="is not there"):
        run_job(artifact, str(tmp_path / "nothing"), tmp_path / "out4")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_no_rows_at_all_are_scored_too(artifact, rows, tmp_path):
    pl.read_parquet(rows).clear().write_parquet(rows)
    assert run_job(artifact, str(rows), tmp_path / "out").rows_out == 0
