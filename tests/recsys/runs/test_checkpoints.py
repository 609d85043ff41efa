"""Checkpoints that are damaged: the newest intact one is taken, and every fault is one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import stop_after

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.storage import MANIFEST, seal
from data_pipelines.errors import Notice, UserError
from recsys.config.experiment import ExperimentConfig
from recsys.runs.checkpoints import STATE_FILE, load_weights, read_tensors, step_name, steps, steps_of, stored_tensors
from recsys.training.train import train
from recsys.training.trainer import InterruptedTrainingError


@pytest.fixture(scope="module")
def config(tiny_data: dict[str, Any]) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": tiny_data,
            "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [8], "dropout": 0.1}},
            "train": {"epochs": 2, "batch_size": 128, "checkpoint_every": 4, "patience": 9},
        }
    )


@pytest.fixture(scope="module")
def dataset(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(config.data, tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def undisturbed(config: ExperimentConfig, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(config, dataset, run)
    return run


@pytest.fixture(scope="module")
def stopped(config: ExperimentConfig, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(InterruptedTrainingError):
        train(config, dataset, run, on_step=stop_after(2000))
    assert len(steps(run)) >= 2
    return run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(checkpoint: Path, state: object) -> None:
    (checkpoint / STATE_FILE).write_text(json.dumps(state))
    seal(checkpoint, "checkpoint", {"world_size": 1})


def cut_header(checkpoint: Path) -> None:
    """A manifest that is right, over a file whose header is not."""
    file = next(checkpoint.glob("*.safetensors"))
    file.write_bytes((1 << 40).to_bytes(8, "little") + file.read_bytes()[8:])
    seal(checkpoint, "checkpoint", {"world_size": 1})


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda c: flip(next(c.glob("*.safetensors"))),
    "a file that is gone": lambda c: next(c.glob("*.safetensors")).unlink(),
    "a manifest cut short": lambda c: (c / MANIFEST).write_text("{"),
    "a state that is no JSON": lambda c: (rewrite(c, {}), (c / STATE_FILE).write_text("{"), seal(c, "checkpoint", {})),
    "a state that says nothing": lambda c: rewrite(c, []),
    "a header that leads outside": cut_header,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_training_resumes_from_the_newest_intact_checkpoint(
    kind: str, config: ExperimentConfig, dataset: Dataset, undisturbed: Path, stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    *_, before, newest = steps(run)
    DAMAGE[kind](run / "checkpoints" / step_name(newest))
    with pytest.warns(Notice, match=rf"{step_name(newest)}.*from the checkpoint of step {before}"):
        train(config, dataset, run, resume=True)
    left, right = (read_tensors(r / "checkpoints" / "final", "") for r in (undisturbed, run))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_without_an_intact_checkpoint_is_not_trained_anew(
    config: ExperimentConfig, dataset: Dataset, stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for step in steps(run):
        flip(next((run / "checkpoints" / step_name(step)).glob("*.safetensors")))
    with pytest.raises(UserError, match=r"no checkpoint of .* is intact"):
        train(config, dataset, run, resume=True)


def test_strays_among_checkpoints_are_left_alone(
    config: ExperimentConfig, dataset: Dataset, stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    expected = steps(run)
    (run / "checkpoints" / "step-abc").mkdir()
    (run / "checkpoints" / "step-000000999").write_text("a file")
    (run / "checkpoints" / "step-000000998").mkdir()
    assert steps(run) == expected
    train(config, dataset, run, resume=True)
    assert (run / "checkpoints" / "step-abc").exists()


def test_names_that_are_no_steps() -> None:
    assert steps_of(["step-000000012", "step-000000003", "step-abc", "step-", "step-1", "final", "step-²²²²²²²²²"]) == [
        3,
        12,
    ]


def test_equal_weights_are_equal_bytes(
    config: ExperimentConfig, dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        train(config, dataset, tmp_path / name)
    runs = [undisturbed, *(tmp_path / name for name in ("a", "b", "c"))]
    contents = {file.read_bytes() for run in runs for file in (run / "checkpoints" / "final").glob("*.safetensors")}
    assert len(contents) == 1


def test_a_finished_run_with_a_damaged_file_is_one_sentence(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "schema.json").write_text("{")
    with pytest.raises(UserError, match=r"schema\.json is damaged"):
        load_weights(run)
    cut_header(run / "checkpoints" / "final")
    with pytest.raises(UserError, match="is damaged"):
        stored_tensors(run / "checkpoints" / "final")
