"""Convolution of histories against a loop over rows."""

import torch
from history_examples import LENGTHS, make_events
from hypothesis import given, settings

from models.layers.histories import LocalConvolution


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_convolution_sees_neighbours_of_its_own_row_only(lengths):
    torch.manual_seed(1)
    convolution = LocalConvolution(0, 3)
    events_LC, offsets = make_events(lengths, 3)
    pooled_BC = convolution(torch.empty(len(lengths), 0), events_LC, offsets)
    for b, length in enumerate(lengths):
        padded = torch.nn.functional.pad(events_LC[offsets[b] : offsets[b + 1]], (0, 0, 1, 1))
        mixed = [convolution.kernel(padded[t : t + 3].flatten()).relu() for t in range(length)]
        expected_C = torch.stack(mixed).mean(0) if mixed else torch.zeros(3)
        torch.testing.assert_close(pooled_BC[b], expected_C)
