"""The whole road from and to an object store: log, data set, run, artifact and scores are all at addresses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from data_pipelines.dataset import columns, prepare
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.object_store import fetched
from data_pipelines.errors import UserError
from recsys.cli import app
from recsys.evaluation.evaluate import evaluate


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
    assert recsys("evaluate", f"{bucket}/run")["test"]["auc"] > 0.5
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
    with pytest.raises(UserError, match="nothing complete is there"):
        recsys("train", str(config), f"{bucket}/nothing", f"{bucket}/other")
    with pytest.raises(UserError, match="--cache is for a DATASET at an address"):
        recsys("train", str(config), f"{bucket}/dataset", f"{bucket}/other", "--cache", "1")


def test_ranks_fetch_their_files_of_a_data_set_and_send_their_parts_of_a_run(
    bucket: str, tiny_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PART_ROWS", 200)
    monkeypatch.setattr(prepare, "CHUNK_ROWS", 200)
    config = tmp_path / "config.yaml"
    sharded = {table: {"sharding": "row_wise"} for table in ("user", "item")}
    settings = {"epochs": 1, "batch_size": 128, "checkpoint_every": 2, "checkpoint_aside": True, "mix_shards": 2}
    content = {"data": tiny_data, "model": {"dim": 4, "tables": sharded}, "train": settings}
    config.write_text(yaml.safe_dump(content))
    recsys("prepare", str(config), f"{bucket}/dataset")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recsys"]
    done = subprocess.run(
        [*ranks, "train", str(config), f"{bucket}/dataset", f"{bucket}/run", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    run = fetched(f"{bucket}/run")
    assert len(list(run.glob("checkpoints/final/*.safetensors"))) == 2
    result = json.loads(done.stdout.splitlines()[-1])
    expected = result["valid"]["logloss"]
    [note] = [note for note in result["notes"] if "each rank fetched" in note]
    *fetched_by_rank, total = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", note))
    assert len(fetched_by_rank) == 2
    assert min(fetched_by_rank) > 0
    assert sum(fetched_by_rank) < total  # nobody has read the test split or the state
    dataset = Dataset.open(fetched(f"{bucket}/dataset"))
    assert evaluate(run, dataset, "valid", draws=0).tasks["click"]["logloss"] == pytest.approx(expected, abs=1e-6)
