"""Random histories of several rows in one tensor."""

import torch
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def make_events(lengths: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, width) events of all rows, and (B + 1,) where those of each row start."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(sum(lengths), width), offsets
