"""What a step costs a GPU, counted on the CPU: operations that are launched, and tensors that are read back."""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from training_examples import configure

from data_pipelines.dataset.dataset import prepare
from recsys.training.device.captured import CapturedLoss
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


class _Graph(torch.autograd.Function):
    """A module's forward and backward pass, which no counter sees: to the CPU a CUDA graph is one launch each."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, arguments: int, *inputs: Tensor) -> Tensor:
        with _disable_current_modes(), torch.enable_grad():
            leaves = [part.detach().requires_grad_(part.requires_grad) for part in inputs[:arguments]]
            loss: Tensor = module(*leaves)
            wanted = [part for part in (*leaves, *inputs[arguments:]) if part.requires_grad]
            found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
            ctx.grads = [next(found) if part.requires_grad else None for part in (*leaves, *inputs[arguments:])]
            return loss.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, *(None if found is None else found.detach() for found in ctx.grads)


def graph_of(module: nn.Module, samples: tuple[Tensor, ...], *, allow_unused_input: bool) -> Callable[..., Tensor]:
    """A stand-in for ``torch.cuda.make_graphed_callables``."""
    parameters = tuple(module.parameters())

    def replay(*arguments: Tensor) -> Tensor:
        loss: Tensor = _Graph.apply(module, len(arguments), *arguments, *parameters)
        return loss

    return replay


def operations_of_a_step(
    experiment: dict[str, Any], folder: Path, *, captured: bool = False, **changes: Any
) -> Operations:
    config = configure(experiment, **changes)
    dataset = prepare(config.data, folder / "dataset")
    with Trainer(config, dataset, folder / "run") as trainer:
        if captured:
            objective, rows = trainer._objective, config.train.batch_size
            objective._captured = CapturedLoss(
                trainer.state.ranker, objective._tail, rows=rows, half=False, make=graph_of
            )
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


@pytest.mark.parametrize("tower", [{"kind": "mlp", "hidden": [16]}, {"kind": "moe", "experts": 4, "hidden": 16}])
def test_with_a_captured_dense_part_a_step_launches_lookups_and_optimizers_only(
    experiment: dict[str, Any], tmp_path: Path, tower: dict[str, Any]
) -> None:
    operations = operations_of_a_step(experiment, tmp_path, captured=True, model__tower=tower)
    assert operations.counts[READ] == 0
    assert operations.launches <= 50, operations.counts


def test_a_counter_sees_what_a_tensor_that_is_read_back_costs() -> None:
    with Operations() as operations:
        torch.ones(3).sum().item()
    assert operations.counts[READ] == 1
