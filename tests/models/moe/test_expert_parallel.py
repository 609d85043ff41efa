"""Experts sharded over two ranks against the same experts on one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranker_examples import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from models.moe.expert_parallel import shard_experts
from models.moe.tower import MixtureConfig, MixtureTower

ROWS, RANKS = 20, 2


def make_tower() -> MixtureTower:
    torch.manual_seed(1)
    return MixtureTower(12, MixtureConfig(hidden=8, experts=6, top_k=2, blocks=2, shared=True))


def make_rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(ROWS, 12, generator=generator), torch.randn(ROWS, 12, generator=generator)


def step_on_this_rank() -> dict[str, Tensor]:
    """Outputs and input gradients of this rank's rows; gradients and state of all experts, put together again."""
    rank = dist.get_rank()
    tower = make_tower()
    names = shard_experts(tower, init_device_mesh("cpu", (RANKS,)))
    x_ND, target_ND = (rows.chunk(RANKS)[rank].clone() for rows in make_rows())
    x_ND.requires_grad_()
    y_ND = tower(x_ND)
    (y_ND * target_ND).sum(1).mean().backward()
    parameters = dict(tower.named_parameters())
    held = torch.tensor([sum(parameters[name].to_local().numel() for name in names)])
    whole = {name: parameters[name].grad.full_tensor() for name in names}
    state = {name: tensor.full_tensor() for name, tensor in tower.state_dict().items() if name in names}
    return {"y": y_ND.detach(), "x": x_ND.grad, "held": held} | whole | {f"state {n}": t for n, t in state.items()}


def test_two_ranks_give_the_outputs_and_gradients_of_one(tmp_path: Path):
    tower = make_tower()
    x_ND, target_ND = make_rows()
    x_ND.requires_grad_()
    y_ND = tower(x_ND)
    (y_ND * target_ND).sum(1).mean().backward()
    ranks = on_ranks(RANKS, tmp_path, step_on_this_rank)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(torch.cat([rank["y"] for rank in ranks]), y_ND.detach(), **close)
    torch.testing.assert_close(torch.cat([rank["x"] for rank in ranks]) / RANKS, x_ND.grad, **close)
    expert_numbers = 0
    for name, parameter in tower.named_parameters():
        if ".experts." in name:
            expert_numbers += parameter.numel()
            for rank in ranks:
                torch.testing.assert_close(rank[name], parameter.grad, **close)
                assert torch.equal(rank[f"state {name}"], parameter)
    assert [int(rank["held"]) for rank in ranks] == [expert_numbers // RANKS] * RANKS


def test_experts_that_cannot_be_sharded_evenly_are_refused(one_rank: None):
    class FourRanks:
        def size(self) -> int:
            return 4

    with pytest.raises(ValueError, match="6 experts cannot be sharded evenly over 4 ranks"):
        shard_experts(make_tower(), FourRanks())
