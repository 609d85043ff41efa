"""Marks of globs in names of files and folders: they are part of the name, in every verb."""

from pathlib import Path

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from data_pipelines.profile.inspection import inspect_log
from serving.batch.inputs import Input

ROWS = 300


def log() -> pl.DataFrame:
    n = range(ROWS)
    return pl.DataFrame({"time": [1_700_000_000 + 60 * i for i in n], "list": [i // 3 for i in n]}).with_columns(
        user=pl.format("u{}", pl.col("list") % 7), click=(pl.col("time") // 60 % 3 == 0).cast(pl.Int8)
    )


def config(location: Path) -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": str(location),
            "time": "time",
            "group": ["list"],
            "tasks": {"click": {"column": "click"}},
            "features": {"user": {"kind": "id"}, "past": {"kind": "history", "of": ["user"], "entity": "user"}},
        }
    )


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("runs [final]", "parquet"), ("st*r", "csv"), ("what?", "arrow"), ("curly{a,b}", "ndjson"), ("[1]", "csv")],
)
def test_marks_of_globs_are_part_of_a_name(name: str, suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "log"
    folder.mkdir(parents=True)
    write = {"arrow": "write_ipc"}.get(suffix, f"write_{suffix}")
    for number, part in enumerate((log()[:150], log()[150:])):
        getattr(part, write)(folder / f"{number} {name}.{suffix}")
    assert inspect_log(str(folder)).rows == ROWS
    prepare(config(folder), tmp_path / name / "dataset")
    dataset = Dataset.open(tmp_path / name / "dataset")
    assert dataset.frame("train").select(pl.len()).collect().item() == dataset.splits["train"]
    plan = Plan.of(dataset.config)
    parts = Input.find(str(folder), plan).parts(tmp_path / name / "stage", plan)
    rows = pl.concat([part.scan() for part in parts])
    assert dataset.state is not None
    assert len(dataset.encoder.encode(dataset.state.attach(rows)).collect()) == ROWS
