"""Runs that are killed or stopped, and resume to the same weights, also at other ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from stopping import stop_after
from training_examples import assert_same, configure, final_tensors, losses_of, run_command

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import open_directory
from recsys.config.experiment import load_config
from recsys.evaluation.evaluate import evaluate
from recsys.runs.checkpoints import load_weights, step_name, steps
from recsys.training.faults import InterruptedTrainingError
from recsys.training.train import train

KILLED = """
import os, signal, sys
from pathlib import Path
from data_pipelines.dataset.dataset import Dataset
from recsys.config.experiment import load_config
from recsys.training.train import train

left = int(sys.argv[4])

def kill(rows, note):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

train(load_config(Path(sys.argv[1])), Dataset.open(Path(sys.argv[2])), sys.argv[3], on_step=kill)
"""
"""A training that is killed after so many steps, from within: nobody has to look at the right moment."""


@pytest.mark.parametrize("aside", [False, True])
def test_a_killed_training_resumes_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, aside: bool
) -> None:
    config = tmp_path / "config.yaml"
    settings = {"epochs": 4, "batch_size": 64, "checkpoint_every": 20, "checkpoint_aside": aside}
    long = experiment | {"train": experiment["train"] | settings}
    config.write_text(yaml.safe_dump(long))
    undisturbed = train(load_config(config), dataset, tmp_path / "undisturbed")

    killed = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(config), str(dataset.path), str(tmp_path / "killed"), "50"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert steps(tmp_path / "killed")
    assert not (tmp_path / "killed" / "manifest.json").exists()
    for step in steps(tmp_path / "killed"):
        open_directory(tmp_path / "killed" / "checkpoints" / step_name(step), "checkpoint")

    resumed = train(load_config(config), dataset, tmp_path / "killed", resume=True)
    assert_same(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "killed"))
    losses = [losses_of(tmp_path / run) for run in ("undisturbed", "killed")]
    assert len(losses[0]) > 1
    assert losses[0] == losses[1]
    assert undisturbed.valid == resumed.valid


@pytest.mark.parametrize(
    "changes",
    [
        {"train__tables": {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.001}},
        {
            "model__batch_norm": True,
            "train__ema": 0.9,
            "train__dense": {"optimizer": "adam", "clip_norm": 1.0},
            "train__evaluate_every": 7,
        },
        {"train__schedule": {"kind": "cosine", "warmup_steps": 10}, "train__precision": "bf16"},
        {"sparsity": {"row_pruning": {"sparsity": 0.5}}},
        {"train__checkpoint_aside": True, "train__checkpoint_every": 1, "train__ema": 0.9},
    ],
)
def test_a_stopped_training_resumes_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = configure(experiment, **changes)
    train(config, dataset, tmp_path / "undisturbed")
    with pytest.raises(InterruptedTrainingError, match="--resume"):
        train(config, dataset, tmp_path / "stopped", on_step=stop_after(2000))
    train(config, dataset, tmp_path / "stopped", resume=True)
    assert_same(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "stopped"))


def test_a_training_that_ends_between_epochs_resumes_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = configure(experiment, train__epochs=3, train__patience=3)
    undisturbed = train(config, dataset, tmp_path / "undisturbed")

    def stop(_step: int, _value: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, tmp_path / "stopped", on_eval=stop)
    resumed = train(config, dataset, tmp_path / "stopped", resume=True)
    assert resumed.steps == undisturbed.steps
    assert_same(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "stopped"))


@pytest.mark.parametrize(("shardings", "spread"), [(["table_wise", "row_wise"], False), (["auto"], True)])
def test_two_ranks_train_and_their_checkpoint_goes_on_at_one(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, shardings: list[str], spread: bool
) -> None:
    config = tmp_path / "config.yaml"
    names = [table.name for table in dataset.schema.tables]
    tables = {name: {"sharding": sharding} for name, sharding in zip(names, cycle(shardings), strict=False)}
    tower = experiment["model"]["tower"] | {"expert_parallel": spread}
    model = experiment["model"] | {"tables": tables, "tower": tower}
    every_step = experiment["train"] | {"checkpoint_every": 1}
    config.write_text(yaml.safe_dump(experiment | {"model": model, "train": every_step}))
    run = tmp_path / "run"
    two = run_command("train", config, dataset.path, run, "--json", ranks=2)
    assert two.returncode == 0, two.stderr
    result = json.loads(two.stdout.splitlines()[-1])

    alone = evaluate(run, dataset, "valid", draws=0)
    assert alone.tasks["click"]["logloss"] == pytest.approx(result["valid"]["logloss"], abs=1e-6)
    assert alone.tasks["click"]["auc"] == pytest.approx(result["valid"]["auc"], abs=1e-6)

    # Take the end away, so that the run is one that was killed, and go on at one rank under another sharding.
    (run / "manifest.json").unlink()
    last = steps(run)[-1]
    weights = load_weights(run)
    others = zip(names, cycle(["row_wise", "table_wise"]), strict=False)
    resharded = {"tables": {name: {"sharding": sharding} for name, sharding in others}}
    result_one = train(configure(experiment, model=model | resharded), dataset, run, resume=True)
    assert result_one.steps == last == result["steps"]
    one = load_weights(run)
    for part in ("tables", "dense"):
        assert_same(getattr(one, part), getattr(weights, part))


def test_spread_experts_resume_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    tower = experiment["model"]["tower"] | {"expert_parallel": True}
    config.write_text(yaml.safe_dump(experiment | {"model": experiment["model"] | {"tower": tower}}))
    run = tmp_path / "run"
    undisturbed = run_command("train", config, dataset.path, run, ranks=2)
    assert undisturbed.returncode == 0, undisturbed.stderr
    final = final_tensors(run)
    # Take all after the first checkpoint away, so that the run is one that was killed.
    for path in (run / "manifest.json", run / "metrics.parquet"):
        path.unlink()
    for folder in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    resumed = run_command("train", config, dataset.path, run, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(final, final_tensors(run))
