"""Convolution of histories against a loop over rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.histories import LocalConvolution

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def _events(lengths: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(sum(lengths), width), offsets


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_convolution_sees_neighbours_of_its_own_row_only(lengths):
    torch.manual_seed(1)
    convolution = LocalConvolution(0, 3)
    events_LC, offsets = _events(lengths, 3)
    pooled_BC = convolution(torch.empty(len(lengths), 0), events_LC, offsets)
    for b, length in enumerate(lengths):
        padded = torch.nn.functional.pad(events_LC[offsets[b] : offsets[b + 1]], (0, 0, 1, 1))
        mixed = [convolution.kernel(padded[t : t + 3].flatten()).relu() for t in range(length)]
        expected_C = torch.stack(mixed).mean(0) if mixed else torch.zeros(3)
        torch.testing.assert_close(pooled_BC[b], expected_C)
