"""The effective rank of matrices whose singular values are known."""

import math

import pytest
import torch

from models.tables import effective_rank as module
from models.tables.effective_rank import effective_rank


def _with_singular_values(values: list[float], rows: int = 50) -> torch.Tensor:
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([2.0, 2.0, 2.0, 2.0], 4.0),
        ([7.0, 0.0, 0.0], 1.0),
        ([3.0, 3.0, 0.0, 0.0], 2.0),
        ([0.5, 0.25, 0.25], math.exp(1.5 * math.log(2))),
    ],
)
def test_it_is_the_exponential_of_the_entropy_of_the_singular_values(values: list[float], rank: float) -> None:
    assert effective_rank(_with_singular_values(values).float()) == pytest.approx(rank, abs=1e-3)


def test_a_row_counts_as_often_as_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    table, count = torch.randn(20, 4), torch.randint(0, 5, (20,))
    repeated = table.repeat_interleave(count, 0)
    singular = torch.linalg.svdvals(repeated.double())
    share = singular / singular.sum()
    expected = math.exp(-float((share * share.log()).sum()))
    assert effective_rank(table, count) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(module, "_ROWS", 7)  # the table in pieces
    assert effective_rank(table, count) == pytest.approx(expected, rel=1e-6)


def test_tables_without_a_direction() -> None:
    assert effective_rank(torch.zeros(5, 3)) == 0
    assert effective_rank(torch.empty(0, 3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan]])))
