"""What a step costs a GPU, counted on the CPU: operations that are launched, and tensors that are read back."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_examples import configure

from data_pipelines.dataset.dataset import prepare
from recsys.training.trainer import Trainer

READ = "aten._local_scalar_dense.default"
VIEWS = {
    f"aten.{name}"
    for name in (
        *("view.default", "slice.Tensor", "t.default", "transpose.int", "detach.default", "select.int"),
        *("expand.default", "unsqueeze.default", "unbind.int"),
    )
}


class Operations(TorchDispatchMode):
    """Counts operations by name, but for FBGEMM's reads of its step counter, which a GPU build keeps on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if name != READ or not any("fbgemm_gpu" in frame.filename for frame in traceback.extract_stack()):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def launches(self) -> int:
        """Operations that compute; views of memory cost a GPU nothing."""
        return sum(
            count for name, count in self.counts.items() if name not in VIEWS and not name.startswith("profiler.")
        )


def operations_of_a_step(experiment: dict[str, Any], folder: Path, **changes: Any) -> Operations:
    config = configure(experiment, **changes)
    dataset = prepare(config.data, folder / "dataset")
    with Trainer(config, dataset, folder / "run") as trainer:
        batches = iter(trainer.loader)
        trainer.train_step(next(batches))
        batch = next(batches)
        with Operations() as operations:
            trainer._step(batch)
    return operations


@pytest.mark.parametrize("tower", [{"kind": "mlp", "hidden": [16]}, {"kind": "moe", "experts": 4, "hidden": 16}])
def test_a_step_launches_as_much_for_many_features_as_for_few_and_reads_nothing_back(
    experiment: dict[str, Any], tmp_path: Path, tower: dict[str, Any]
) -> None:
    more = {f"device_{i}": {"kind": "id", "column": "device"} for i in range(12)}
    features = experiment["data"]["features"]
    few = operations_of_a_step(experiment, tmp_path / "few", model__tower=tower)
    many = operations_of_a_step(experiment, tmp_path / "many", model__tower=tower, data__features=features | more)
    for operations in (few, many):
        assert operations.counts[READ] == operations.counts["aten.nonzero.default"] == 0
    assert many.launches - few.launches <= len(more) // 2
    assert few.launches <= {"mlp": 110, "moe": 240}[tower["kind"]]


def test_a_counter_sees_what_a_tensor_that_is_read_back_costs() -> None:
    with Operations() as operations:
        torch.ones(3).sum().item()
    assert operations.counts[READ] == 1
