"""Losses that are read several steps at a time, as on a GPU: the same training, and the same failures."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.config.experiment import ExperimentConfig
from recsys.runs.checkpoints import read_tensors
from recsys.training.faults import DivergedError
from recsys.training.losses import READ_EVERY, Losses
from recsys.training.train import train
from recsys.training.trainer import Trainer


@pytest.fixture
def config(tiny_data: dict[str, Any]) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"data": tiny_data, "model": {"dim": 8}, "train": {"epochs": 2, "batch_size": 20, "checkpoint_every": 33}}
    )


@pytest.fixture
def dataset(config: ExperimentConfig, tmp_path: Path) -> Dataset:
    return prepare(config.data, tmp_path / "dataset")


@pytest.fixture
def read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are read as often as on a GPU."""
    make = Losses.__init__

    def make_lazy(losses: Losses, *arguments: Any) -> None:
        make(losses, *arguments)
        losses.read_every = READ_EVERY

    monkeypatch.setattr(Losses, "__init__", make_lazy)


def test_the_weights_and_the_logged_losses_are_the_same(
    config: ExperimentConfig, dataset: Dataset, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    each = train(config, dataset, tmp_path / "each")
    request.getfixturevalue("read_late")
    late = train(config, dataset, tmp_path / "late")
    assert late.valid == each.valid
    ours, theirs = (read_tensors(tmp_path / run / "checkpoints" / "final", "") for run in ("late", "each"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logged = [
        pl.read_parquet(tmp_path / run / "metrics.parquet").filter(metric="loss").select("step", "value").rows()
        for run in ("each", "late")
    ]
    assert logged[0] == logged[1]
    assert len(logged[0]) > 1


@pytest.mark.usefixtures("read_late")
def test_a_loss_that_is_nan_is_found_late_with_its_step_and_its_batch(
    config: ExperimentConfig, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Trainer(config, dataset, tmp_path / "run") as trainer:
        loss = trainer._objective.loss

        def spoilt(batch: Any) -> torch.Tensor:
            return loss(batch) * (float("nan") if trainer.train_state.step == 13 else 1.0)

        monkeypatch.setattr(trainer._objective, "loss", spoilt)
        with pytest.raises(DivergedError, match="at step 13"):
            trainer.fit()
    assert (tmp_path / "run" / "failed-batch-rank0.safetensors").is_file()
