"""When a checkpoint is written by a thread, and when at once."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import configure

from data_pipelines.dataset.dataset import Dataset
from recsys.runs.processes import Processes
from recsys.runs.run import LocalRun, run_at
from recsys.training.checkpoint_writer import CheckpointWriter
from recsys.training.trainer import Trainer


def threads_of_writes(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The thread of each write from now on."""
    threads: list[threading.Thread] = []
    write = LocalRun.save

    def save(self: LocalRun, *arguments: Any) -> None:
        threads.append(threading.current_thread())
        write(self, *arguments)

    monkeypatch.setattr(LocalRun, "save", save)
    return threads


def test_without_room_on_the_card_for_a_copy_a_checkpoint_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threads_of_writes(monkeypatch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 30))
    monkeypatch.setattr(Processes, "apart", lambda self: self)
    processes = Processes(0, 1, torch.device("cuda"), None)
    with CheckpointWriter(run_at(tmp_path / "run"), processes, keep=2, aside=True) as writer:
        writer.save("final", {"model.weight": torch.ones(3)}, {"dataset": ""})
        assert (tmp_path / "run" / "checkpoints" / "final").is_dir()
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize(("aside", "here"), [(None, True), (False, True), (True, False)])
def test_on_a_cpu_checkpoints_are_written_at_once_unless_asked(
    experiment: dict[str, Any],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aside: bool | None,
    here: bool,
) -> None:
    threads = threads_of_writes(monkeypatch)
    config = configure(experiment, train__checkpoint_aside=aside, train__epochs=1)
    with Trainer(config, dataset, tmp_path / "run") as trainer:
        trainer.train_step(next(iter(trainer.loader)))
        trainer.finish()
    assert threads
    assert {thread is threading.current_thread() for thread in threads} == {here}


def test_a_memory_that_a_cpu_does_not_have_is_noted(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = configure(experiment, model__tables={"user": {"memory": "cached"}}, train__epochs=1)
    with Trainer(config, dataset, tmp_path / "run") as trainer:
        result = trainer.fit()
    assert "model.tables.user.memory has no effect on a CPU: all tables are in the machine's memory." in result.notes
