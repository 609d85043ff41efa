"""The whole road from and to an object store: log, data set, run, artifact and scores are all at addresses."""

import json
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from recsys.cli import app


def recsys(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_every_verb_reads_and_writes_addresses(
    bucket: str, tiny_log: Path, tiny_data: dict[str, Any], tmp_path: Path
) -> None:
    fsspec.filesystem("s3").put_file(str(tiny_log), f"{bucket}/log.parquet")
    config = tmp_path / "config.yaml"
    content = {
        "data": {**tiny_data, "log": f"{bucket}/log.parquet"},
        "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [8]}},
        "train": {"epochs": 1, "batch_size": 512},
    }
    config.write_text(yaml.safe_dump(content))
    assert recsys("prepare", str(config), f"{bucket}/dataset")["dataset"] == f"{bucket}/dataset"
    assert recsys("train", str(config), f"{bucket}/dataset", f"{bucket}/run")["run"] == f"{bucket}/run"
    recsys("export", f"{bucket}/run", f"{bucket}/artifact")
    job = recsys("score", f"{bucket}/artifact", f"{bucket}/log.parquet", f"{bucket}/scores")
    assert job["rows_out"] == 2000
    names = [Path(name).name for name in fsspec.filesystem("s3").find(f"{bucket}/scores")]
    assert "manifest.json" in names
    scores = pl.read_parquet(f"{bucket}/scores/part-*.parquet")
    assert scores.height == 2000
    assert scores["click"].is_between(0, 1).all()
    with pytest.raises(UserError, match="already exists"):
        recsys("prepare", str(config), f"{bucket}/dataset")
    missing = CliRunner().invoke(app, ["train", str(config), f"{bucket}/nothing", f"{bucket}/other"])
    assert missing.exit_code == 2
    assert "nothing complete is there" in missing.output
