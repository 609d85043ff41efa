"""Captured steps, with a stand-in for CUDA graphs that runs the kernels as often as a capture does."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_examples import assert_same, configure, final_tensors

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import Notice
from recsys.config.experiment import ExperimentConfig
from recsys.training.device.captured import CapturedLoss, may_capture
from recsys.training.trainer import Trainer

Replay = Callable[..., Tensor]


class Recorder:
    """What ``torch.cuda.make_graphed_callables`` does, but for the graphs: warm up, then the same shapes each time."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        self.replays, self._change = 0, change

    def __call__(self, module: nn.Module, samples: tuple[Tensor, ...], *, allow_unused_input: bool) -> Replay:
        forward, shapes = module.forward, [sample.shape for sample in samples]
        inputs = [tensor for tensor in (*samples, *module.parameters()) if tensor.requires_grad]
        for _ in range(3):
            torch.autograd.grad(module(*samples), inputs, allow_unused=allow_unused_input)

        def replay(*arguments: Tensor) -> Tensor:
            assert [argument.shape for argument in arguments] == shapes
            assert all(a.requires_grad == s.requires_grad for a, s in zip(arguments, samples, strict=True))
            self.replays += 1
            loss: Tensor = self._change(forward(*arguments))
            return loss

        return replay


def train(config: ExperimentConfig, dataset: Dataset, run: Path, make: Callable[..., Any] | None) -> Trainer:
    """Train with a captured dense part, if ``make`` captures it; it is captured once, in the first step."""
    before: list[int] = []
    with Trainer(config, dataset, run) as trainer:
        if make is not None:
            objective, rows = trainer._objective, config.train.batch_size
            objective._captured = CapturedLoss(
                trainer.state.ranker,
                objective._tail,
                rows=rows,
                half=objective._half,
                before=lambda: before.append(trainer.train_state.step),
                make=make,
            )
        trainer.fit()
    assert before == ([] if make is None else [0])
    return trainer


@pytest.fixture(scope="module")
def config(experiment: dict[str, Any]) -> ExperimentConfig:
    return configure(experiment, train__epochs=2, model__wide=True, model__batch_norm=True)


@pytest.fixture(scope="module")
def expected(config: ExperimentConfig, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    run = tmp_path_factory.mktemp("plain") / "run"
    train(config, dataset, run, None)
    return final_tensors(run)


def test_full_batches_are_replayed_to_the_same_weights(
    config: ExperimentConfig, dataset: Dataset, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    recorder = Recorder()
    trainer = train(config, dataset, tmp_path / "run", recorder)
    full = dataset.splits["train"] // config.train.batch_size
    assert 0 < full < len(trainer.loader)
    assert recorder.replays == config.train.epochs * full + 1  # the first is compared with a step without a graph
    assert_same(final_tensors(tmp_path / "run"), expected)


def fails(*_: Any, **__: Any) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


class FailsAfterWarmUp(Recorder):
    def __call__(self, module: nn.Module, samples: tuple[Tensor, ...], *, allow_unused_input: bool) -> Replay:
        super().__call__(module, samples, allow_unused_input=allow_unused_input)
        raise RuntimeError("capturing stream has unjoined work")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (FailsAfterWarmUp(), r"\(capturing stream has unjoined work\)"),
        (fails, r"\(operation not permitted when stream is capturing\)"),
        (Recorder(lambda loss: 2 * loss), r"the loss of its first replay is .*, not "),
        (Recorder(lambda loss: 2 * loss - loss.detach()), r"the norm of gradients of its first replay is .*, not "),
    ],
)
def test_a_capture_that_fails_is_said_once_and_the_training_goes_on(
    config: ExperimentConfig,
    dataset: Dataset,
    tmp_path: Path,
    expected: dict[str, Tensor],
    make: Callable[..., Any],
    why: str,
) -> None:
    with pytest.warns(Notice, match=why) as found:
        train(config, dataset, tmp_path / "run", make)
    assert len([warning for warning in found if issubclass(warning.category, Notice)]) == 1
    assert_same(final_tensors(tmp_path / "run"), expected)


@pytest.mark.parametrize(
    ("changes", "half", "may"),
    [
        ({}, True, True),
        ({}, False, False),  # grouped products in float32 read sizes on the CPU
        ({"model__tower": {"kind": "mlp", "hidden": [8]}}, False, True),
        ({"sparsity": {"l1": {"dense": 1e-5}}}, True, False),
    ],
)
def test_steps_that_change_or_wait_are_not_captured(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, changes: dict[str, Any], half: bool, may: bool
) -> None:
    with Trainer(configure(experiment, **changes), dataset, tmp_path / "run") as trainer:
        assert may_capture(trainer.state.ranker, trainer.state.levers, half=half) is may


def test_a_recorded_pass_leaves_no_graph_that_ties_parameters_to_its_stream(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    with Trainer(configure(experiment), dataset, tmp_path / "run") as trainer:
        objective, ranker = trainer._objective, trainer.state.ranker
        objective._captured = CapturedLoss(
            ranker, objective._tail, rows=len(next(iter(trainer.loader))), half=False, make=Recorder()
        )
        objective.loss(next(iter(trainer.loader)))
        assert ranker.auxiliary_loss() is None


def _read_back(tail: Callable[..., Tensor], *parts: Any) -> Tensor:
    loss = tail(*parts)
    return loss + 0 * loss.item()


@pytest.mark.gpu
def test_a_capture_that_waits_for_the_gpu_fails_and_leaves_stream_and_memory_as_they_were(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    tower, found = {"kind": "mlp", "hidden": [16]}, []
    for graphs in (False, True):
        config = configure(experiment, model__tower=tower, train__cuda_graphs=graphs, train__device="cuda")
        with Trainer(config, dataset, tmp_path / str(graphs)) as trainer, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", Notice)
            captured = trainer._objective._captured
            assert (captured is not None) is graphs
            if captured is not None:
                captured._tail = partial(_read_back, captured._tail)
            trainer.fit()
        assert len([each for each in said if "not captured as CUDA graphs" in str(each.message)]) == int(graphs)
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        found.append(final_tensors(tmp_path / str(graphs)))
    assert_same(*found)
    side, used = torch.cuda.Stream(), torch.cuda.memory_allocated()
    for _ in range(20):
        with torch.cuda.stream(side):
            part = torch.ones(1 << 20, device="cuda")
        part.record_stream(torch.cuda.current_stream())
        del part
        torch.cuda.synchronize()
    torch.ones(1, device="cuda")
    assert torch.cuda.memory_allocated() - used < 5 * (4 << 20)


@pytest.mark.gpu
@pytest.mark.parametrize("tower", [{"kind": "mlp", "hidden": [16]}, {"kind": "moe", "experts": 4, "hidden": 16}])
def test_graphs_train_to_the_weights_without_them(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, tower: dict[str, Any]
) -> None:
    found = []
    for graphs in (False, True):
        config = configure(
            experiment, model__tower=tower, train__precision="bf16", train__epochs=2, train__cuda_graphs=graphs
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            trainer = train(config, dataset, tmp_path / str(graphs), None)
        captured = trainer._objective._captured
        assert (captured is not None and captured._captured is not None) is graphs
        found.append(final_tensors(tmp_path / str(graphs)))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=2e-2, rtol=2e-2, msg=name)
