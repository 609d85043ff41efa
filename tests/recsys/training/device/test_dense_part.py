"""The dense part of a step on a GPU that is not there, and on one that is.

Tensors on the meta device have a shape, a type and a device, but no values: an operation that would have to read a GPU
fails on them. A check refuses what mixes them with tensors of the CPU.
"""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from ranker_examples import SCHEMA, random_batch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.layers.heads import task_losses
from models.layers.losses import LossConfig, loss_of_labelled
from models.layers.outcomes.task_weights import likelihood_factors
from models.moe.expert_parallel import clip_gradients
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from recsys.training.optimizers import AveragedWeights, make_optimizer

GPU, META = torch.device("cuda", 0), torch.device("meta")
MLP, MIXTURE = {"kind": "mlp", "hidden": [16]}, {"kind": "moe", "experts": 4, "hidden": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "cross, wide and gates": {"interaction": {"kind": "cross"}, "tower": MLP, "wide": True, "gates": True},
    "pairs and batch norm": {"interaction": {"kind": "dot"}, "tower": MLP, "batch_norm": True},
    "k-winners": {"tower": MLP | {"k_winners": 0.5}},
    "multiplicative": {"interaction": {"kind": "multiplicative"}, "tower": MLP},
    "attention": {"pooling": {"likes": "attention"}, "tower": MLP, "tasks": {"weights": "uncertainty"}},
    "convolution": {"pooling": {"likes": "convolution"}, "tower": MLP},
    "last": {"pooling": {"likes": "last"}, "tower": MIXTURE, "context": ["user", "year"]},
    "mixture": {"tower": MIXTURE | {"noise": 0.1, "dropout": 0.1}},
    "mixture of k-winners": {"tower": MIXTURE | {"k_winners": 0.5, "balance": "bias", "gate": "sigmoid"}},
    "experts of tasks": {"tower": MIXTURE | {"experts": 6}, "tasks": {"kind": "ple"}},
}
READ: dict[str, dict[str, Any]] = {
    "hstu": {"pooling": {"likes": "hstu"}, "tower": MLP},
    "bst": {"pooling": {"likes": "bst"}, "tower": MLP},
}
"""Configs whose sizes depend on values, so that a GPU has to be read."""


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, but for copies and single numbers."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {part.device for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor) and part.dim()}
        assert len(devices) < 2 or function is torch.ops.aten.copy_.default, f"{function} on {devices}"
        return function(*args, **(kwargs or {}))


def make_ranker(model: dict[str, Any]) -> Ranker:
    config = RankerConfig.model_validate({"dim": 16, **model})
    tables = {table.name: torch.zeros(table.rows, table.dim) for table in lookup_plan(SCHEMA, config).tables}
    keep = {"user": torch.arange(50) % 3 > 0}
    return Ranker(config, SCHEMA, PlainTables(SCHEMA, config, tables, keep, {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_keeps_every_tensor_on_the_device_and_reads_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for the meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    ranker, batch = make_ranker(CONFIGS[name]).to(META), random_batch(64).to(META)
    factors_T = likelihood_factors(["binary", "regression"]).to(META)
    optimizer = make_optimizer("adagrad", ranker.parameters(), learning_rate=0.1, weight_decay=0.1)
    with OneDevice():
        average = AveragedWeights(dict(ranker.named_parameters()), 0.9)
        assert batch.labels is not None
        losses_T = task_losses(ranker(batch), batch.labels, ["binary", "regression"])
        if ranker.task_weights is not None:
            losses_T = ranker.task_weights(losses_T, factors_T)
        loss, extra = losses_T.sum(), ranker.auxiliary_loss()
        torch.autograd.backward(loss if extra is None else loss + extra)
        clip_gradients(ranker.parameters(), 1.0)
        optimizer.step()
        ranker.update_routing()
        average.update(dict(ranker.named_parameters()))
    found = [*ranker.parameters(), *ranker.buffers(), *(p.grad for p in ranker.parameters() if p.grad is not None)]
    assert {tensor.device for tensor in found} == {META}


@pytest.mark.parametrize("name", [*CONFIGS, *READ])
def test_every_part_trains_in_bfloat16(name: str) -> None:
    ranker, batch = make_ranker((CONFIGS | READ)[name]), random_batch(64)
    for parameter in ranker.parameters():
        nn.init.normal_(parameter, std=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        logits_BT = ranker(batch)
    assert batch.labels is not None
    torch.autograd.backward(task_losses(logits_BT, batch.labels, ["binary", "regression"]).sum())
    gradients = [parameter.grad for parameter in ranker.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) // 2


def test_a_meta_device_refuses_what_a_gpu_would_refuse_or_be_read_for() -> None:
    with OneDevice(), pytest.raises(AssertionError, match=r"addmm|mm"):
        nn.functional.linear(torch.randn(2, 3, device=META), torch.randn(4, 3))
    for read in (Tensor.nonzero, Tensor.tolist, lambda x: torch.ones_like(x).repeat_interleave(x.int())):
        with pytest.raises((NotImplementedError, RuntimeError)):
            read(torch.randn(3, device=META))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CONFIGS, *READ])
def test_logits_and_gradients_of_a_gpu_are_those_of_the_cpu(name: str) -> None:
    ranker, batch = make_ranker((CONFIGS | READ)[name]).eval(), random_batch(64)
    for parameter in ranker.parameters():
        nn.init.normal_(parameter, std=0.2)

    def run(device: torch.device) -> list[Tensor]:
        there = copy.deepcopy(ranker).to(device)
        logits_BT = there(batch.to(device))
        found = torch.autograd.grad(logits_BT.square().mean(), list(there.parameters()), allow_unused=True)
        return [logits_BT.cpu(), *(torch.zeros(0) if gradient is None else gradient.cpu() for gradient in found)]

    for found, expected in zip(run(GPU), run(torch.device("cpu")), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["softmax", "lambdarank", "pairwise", "calibrated"])
def test_losses_over_lists_on_a_gpu_are_those_of_the_cpu(loss: str) -> None:
    logits_B, labels_B = torch.randn(64), torch.randint(0, 2, (64,)).float()
    labels_B[::9] = torch.nan
    lists_B, weights_B = torch.arange(64) // 7, torch.rand(64)

    def run(device: torch.device) -> list[Tensor]:
        there_B = logits_B.to(device).requires_grad_()
        config = LossConfig.parse({"kind": loss})
        value = loss_of_labelled(config, there_B, labels_B.to(device), lists_B.to(device), weights_B.to(device))
        return [value.detach().cpu(), torch.autograd.grad(value, there_B)[0].cpu()]

    for found, expected in zip(run(GPU), run(torch.device("cpu")), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
