"""``recsys demo``: the whole road in one command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from recsys.cli import app
from recsys.demo import run_demo


def test_the_demo_ends_with_its_figures_and_may_be_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        result = CliRunner().invoke(app, ["demo", str(tmp_path / "demo"), "--rows", "10000", "--json"])
        assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert set(figures) == {
        "test_auc",
        "auc_ceiling",
        "popularity_auc",
        "linear_auc",
        "checkpoint_bytes",
        "artifact_bytes",
        "artifact_auc",
        "score_rows_per_s",
        "report",
    }
    assert 0.5 < figures["test_auc"] < figures["auc_ceiling"]
    assert figures["artifact_auc"] == pytest.approx(figures["test_auc"], abs=0.02)
    assert figures["artifact_bytes"] < figures["checkpoint_bytes"]
    assert "best reachable" in Path(figures["report"]).read_text()


def test_a_folder_that_no_demo_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not written by a demo"):
        run_demo(tmp_path, rows=10_000, seed=0, announce=lambda step, seconds: None)
    assert (tmp_path / "thesis.txt").exists()
