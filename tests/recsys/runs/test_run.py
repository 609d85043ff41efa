"""Training at an object store: what is there when the machine is lost, and that another machine resumes from it."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from stopping import stop_after

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.object_store import fetched
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate
from recsys.runs.checkpoints import read_tensors
from recsys.runs.run import run_at
from recsys.training.faults import InterruptedTrainingError
from recsys.training.train import train


@pytest.fixture(scope="module")
def experiment(tiny_data: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": tiny_data,
        "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [8], "dropout": 0.1}},
        "train": {"epochs": 2, "batch_size": 128, "checkpoint_every": 4, "patience": 9},
    }


@pytest.fixture(scope="module")
def dataset(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = ExperimentConfig.model_validate(experiment)
    return prepare(config.data, tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def undisturbed(experiment: dict[str, Any], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(ExperimentConfig.model_validate(experiment), dataset, run)
    return run


def configured(experiment: dict[str, Any], **settings: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(experiment | {"train": experiment["train"] | settings})


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = (read_tensors(run / "checkpoints" / "final", "") for run in (one, other))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("aside", [False, True])
def test_another_machine_goes_on_with_a_run(
    experiment: dict[str, Any],
    dataset: Dataset,
    undisturbed: Path,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aside: bool,
) -> None:
    config, address = configured(experiment, checkpoint_aside=aside), f"{bucket}/run"
    with pytest.raises(InterruptedTrainingError):
        train(config, dataset, address, on_step=stop_after(2000))
    with pytest.raises(UserError, match="nothing complete is there"):
        fetched(address)
    with pytest.raises(UserError, match="already exists"):
        train(config, dataset, address)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    result = train(config, dataset, address, resume=True)
    copy = fetched(address)
    assert_same_weights(undisturbed, copy)
    assert evaluate(copy, dataset, "valid", draws=0).tasks["click"]["auc"] == pytest.approx(
        result.valid["click"]["auc"], abs=1e-6
    )
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["final"]
    assert train(config, dataset, address, resume=True) == result
    with pytest.raises(UserError, match="differs from the config given"):
        train(configured(experiment, batch_size=64), dataset, address, resume=True)


def test_a_checkpoint_that_was_not_sent_whole_is_not_gone_on_from(
    experiment: dict[str, Any], dataset: Dataset, undisturbed: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, address = fsspec.get_filesystem_class("s3"), f"{bucket}/run"
    send = store.put_file

    def fail(self: Any, source: str, target: str, **options: Any) -> None:
        send(self, source, target, **options)
        if "step-000000008" in target:
            raise ConnectionResetError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_file", fail)
        with pytest.raises(UserError, match="the line is cut"):
            train(configured(experiment), dataset, address)
    assert any("step-000000008" in name for name in fsspec.filesystem("s3").find(address))
    assert run_at(address).steps() == [4]
    train(configured(experiment), dataset, address, resume=True)
    assert_same_weights(undisturbed, fetched(address))
