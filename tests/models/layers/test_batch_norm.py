"""The row's normalization beside torch's BatchNorm1d, and what it is there for."""

import torch
from torch import nn

from models.layers.batch_norm import BatchNorm


def test_equals_batch_norm_in_training_and_in_evaluation() -> None:
    x_BD = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        torch.testing.assert_close(ours(x_BD), theirs(x_BD))
    torch.testing.assert_close(ours.eval()(x_BD[:1]), theirs.eval()(x_BD[:1]))


def test_the_size_of_the_row_does_not_matter_in_training() -> None:
    x_BD = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BatchNorm(5)(x_BD), BatchNorm(5)(x_BD * 100), atol=1e-4, rtol=1e-4)


def test_one_row_alone_leaves_the_running_statistics() -> None:
    norm = BatchNorm(2)
    norm(torch.ones(1, 2))
    assert torch.equal(norm.running_mean, torch.zeros(2))
