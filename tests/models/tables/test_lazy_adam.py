"""Lazy Adam beside torch's Adam, which it equals on rows that every batch has."""

import torch
from torch import nn

from models.tables.lazy_adam import LazyAdam


def steps(optimizer: torch.optim.Optimizer, table: nn.Parameter, batches: list[list[int]]) -> None:
    for ids in batches:
        optimizer.zero_grad()
        nn.functional.embedding(torch.tensor(ids), table).pow(2).sum().backward()
        optimizer.step()


def test_rows_of_every_batch_move_as_under_adam() -> None:
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    lazy, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    batches = [[0, 1, 1], [1, 0], [0, 1]]
    steps(LazyAdam([lazy], lr=0.1, weight_decay=0.01), lazy, batches)
    steps(torch.optim.Adam([plain], lr=0.1, weight_decay=0.01), plain, batches)
    torch.testing.assert_close(lazy[:2], plain[:2])
    assert not torch.equal(plain[2:], start[2:])


def test_rows_without_a_gradient_rest() -> None:
    table = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    start = table.detach().clone()
    optimizer = LazyAdam([table], lr=0.1, weight_decay=0.1)
    steps(optimizer, table, [[0], [0, 2]])
    after = table.detach().clone()
    steps(optimizer, table, [[0], [0]])
    assert torch.equal(table[1::2], start[1::2])
    assert torch.equal(table[2], after[2])


def test_a_row_seen_late_takes_a_full_first_step() -> None:
    table = nn.Parameter(torch.ones(2, 1))
    optimizer = LazyAdam([table], lr=0.1)
    steps(optimizer, table, [[0]] * 50)
    steps(optimizer, table, [[1]])
    torch.testing.assert_close(table[1], torch.tensor([0.9]))
