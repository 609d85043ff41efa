"""Whole studies on a tiny log: the same tables after a kill, nothing run twice, and a page that needs no network."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import yaml
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.ablation.effects import ALL_ROWS
from recsys.ablation.study import Study
from recsys.ablation.tables import leaks
from recsys.cli import app
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.trials.engines import processes
from recsys.trials.trials import TrialStore
from recsys.trials.workers import Workers

STUDY = {
    "seeds": 2,
    "leave_one_out": ["user", "device"],
    "permute": ["item"],
    "permute_within": ["tags"],
    "mask": ["user"],
    "mask_oov": ["item"],
    "leave_out_experts": True,
    "pairs": ["user", "device"],
    "vary": {"model.dim": [4, 6]},
    "halving": True,
    "selection": "none",
    "warm_start": True,
}
SMALL = (
    "ablation.leave_one_out=[user, device]",
    *(f"ablation.{key}=[]" for key in ("permute", "permute_within", "mask", "mask_oov", "pairs")),
    "ablation.leave_out_experts=false",
    "ablation.vary={}",
    "ablation.warm_start=false",
)
"""The part of the study whose trials all train, six of them."""
MODEL = {"dim": 8, "context": ["device"], "tower": {"kind": "moe", "experts": 2, "top_k": 1, "hidden": 8}}
TRAIN = {"epochs": 1, "batch_size": 400, "tables": {"learning_rate": 0.1}}


@pytest.fixture(scope="module")
def place(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a prepared data set."""
    folder = tmp_path_factory.mktemp("study")
    content = {"name": "tiny", "data": tiny_data, "model": MODEL, "train": TRAIN, "ablation": STUDY}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    prepare(load_config(folder / "config.yaml").data, folder / "dataset")
    return folder


def _arguments(place: Path, out: str, *more: str) -> list[str]:
    paths = [str(place / "config.yaml"), str(place / "dataset"), str(place / out / "study")]
    return ["ablate", *paths, "--json", "--jobs", "1", *more]


def _ablate(place: Path, out: str, *more: str) -> dict[str, Any]:
    """The result of ``recsys ablate``, as ``--json`` prints it."""
    result = CliRunner().invoke(app, _arguments(place, out, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> tuple[dict[str, Any], Path]:
    return _ablate(place, "undisturbed"), place / "undisturbed"


def _trials(folder: Path) -> dict[str, int]:
    """When each finished trial was written, by name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "trials").glob("*/manifest.json")}


def test_a_killed_study_goes_on_to_the_same_trials_and_runs_none_twice(
    place: Path, undisturbed: tuple[dict[str, Any], Path]
) -> None:
    folder, command = place / "killed", [sys.executable, "-m", "recsys", *_arguments(place, "killed", *SMALL)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while len(_trials(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(workers)  # they end by themselves
    before = _trials(folder)
    assert not (folder / "study").exists()
    result = _ablate(place, "killed", *SMALL)
    after = _trials(folder)
    assert before.items() <= after.items()
    assert len(after) == result["trials"] == 6
    for trial in after:
        ours, theirs = (place / out / "trials" / trial / "logits.parquet" for out in ("killed", "undisturbed"))
        assert_frame_equal(pl.read_parquet(ours), pl.read_parquet(theirs), check_exact=True)
    _ablate(place, "again", *SMALL, "--trials", str(undisturbed[1] / "trials"))
    for table in ("effects.csv", "interactions.csv"):
        assert (folder / "study" / table).read_bytes() == (place / "again" / "study" / table).read_bytes()


def test_a_study_leaves_tables_figures_and_configs_that_repeat_it(undisturbed: tuple[dict[str, Any], Path]) -> None:
    result, folder = undisturbed
    study = folder / "study"
    effects = pl.read_csv(study / "effects.csv")
    assert set(effects["verdict"]) <= {"better", "worse", "no effect", "cannot tell"}
    assert (effects["low"] <= effects["effect"]).all()
    assert (effects["effect"] <= effects["high"]).all()
    without_zero = effects.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    assert (without_zero["p_corrected"] < 0.05).all()
    arms = pl.read_csv(study / "arms.csv")
    assert arms["stopped_early"].sum() == 1  # of the two dims, the worse after one seed
    assert result["trials"] == 2 * len(arms) - 1
    assert result["effects"].keys() == {"without user", "without device"}
    experts = arms.filter(pl.col("kind") == "leave_out_expert")
    assert experts["arm"].to_list() == ["without expert 1 by load", "without expert 2 by load"]
    assert experts["note"].str.contains(r"^expert [01], \d+\.\d% of the routed test rows$").all()
    for figure in (
        "forest-leave-one-out",
        "forest-looks",
        "forest-experts",
        "forest-warm-start",
        "pairs",
        "cost-bytes",
    ):
        assert (study / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (study / "figures" / f"{figure}-dark.png").exists()
    without_device = next(
        config for path in (study / "arms").iterdir() if "device" not in (config := load_config(path)).train.features
    )
    assert without_device.model.context == ()
    assert "| without device |" in (study / "study.md").read_text()


def test_the_page_needs_no_network(undisturbed: tuple[dict[str, Any], Path]) -> None:
    page = Path(undisturbed[0]["report"]).read_text()
    assert "Stopped early" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "prefers-color-scheme: dark" in page
    assert "without device" in page
    assert "rank correlation" not in page  # of two arms there is none


def test_a_feature_that_carries_too_much_is_flagged() -> None:
    losses = {"without outcome": -0.4, "without user": -0.05, "without everything": -0.45}
    row = {"metric": "auc", "slice": ALL_ROWS, "kind": "leave_one_out", "verdict": "worse", "reference_value": 0.98}
    effects = pl.DataFrame([row | {"arm": arm, "effect": effect} for arm, effect in losses.items()])
    assert leaks(effects, ["outcome", "user"], 0.5) == {"outcome": pytest.approx(0.4 / 0.48)}


def _study(place: Path, config: ExperimentConfig) -> Study:
    store = TrialStore(place / "elsewhere")
    with processes() as engine:
        return Study(config, Dataset.open(place / "dataset"), Workers(place / "dataset", store, engine))


def test_a_plan_counts_what_is_missing_and_runs_nothing(place: Path, undisturbed: tuple[dict[str, Any], Path]) -> None:
    config = load_config(place / "config.yaml", ["ablation.mask=[user, price]"])
    store = TrialStore(undisturbed[1] / "trials")
    with processes() as engine:
        plan = Study(config, Dataset.open(place / "dataset"), Workers(place / "dataset", store, engine)).plan()
    stopped = next(name for name, count in plan.missing.items() if count == 1)
    assert {name for name, count in plan.missing.items() if count} == {"mask price", stopped}
    assert plan.missing["mask price"] == 2
    assert plan.seconds
    assert "finished trainings" in plan.basis
    new = _ablate(place, "planned", "--plan")
    assert new["trials_to_run"] == 2 * new["arms"]
    assert new["expected_seconds"] > 0
    assert "first steps" in new["expected_time"]
    assert not _trials(place / "planned")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ablation.leave_one_out=[colour]", "neither a feature nor a group"),
        ("ablation.leave_one_out=[user]", None),
        ("ablation.vary={model.tower.experts: [0]}", "experts"),
        ("ablation.vary={model.tower.top_k: [9]}", "top_k"),
        ("ablation.vary={model.interaction.kid: [cross]}", "model.interaction.kid"),
        ("ablation.slices={new: {column: colour, seen_at_most: 1}}", "no key column `colour`"),
        ("ablation.slices={odd: {where: 'colour > 1'}}", "ablation.slices.odd.where"),
        ("ablation.task=buy", "has no task `buy`"),
    ],
)
def test_faults_are_told_before_the_first_trial(place: Path, override: str, said: str | None) -> None:
    config = load_config(place / "config.yaml", [override])
    if said is None:
        _study(place, config)
        return
    with pytest.raises(UserError, match=re.escape(said)):
        _study(place, config)


def test_ranking_metrics_need_a_user_column(place: Path, tiny_data: dict[str, Any], tmp_path: Path) -> None:
    content = {"data": {**tiny_data, "user": None, "split": {"by": "random"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**content, "ablation": {"metrics": ["auc", "gauc"]}}))
    config = load_config(tmp_path / "config.yaml")
    prepare(config.data, tmp_path / "dataset")
    with pytest.raises(UserError, match=r"needs data\.user"):
        _study(tmp_path, config)
