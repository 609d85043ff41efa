"""Histories in one tensor against loops over rows."""

import torch
from history_examples import LENGTHS, make_events
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.histories.jagged import Blocks, Rows, last_event


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_last_is_the_newest_event_of_each_row(lengths):
    events_LC, offsets = make_events(lengths, 3)
    pooled_BC = last_event(events_LC, offsets)
    for b, length in enumerate(lengths):
        expected_C = events_LC[offsets[b + 1] - 1] if length else torch.zeros(3)
        assert torch.equal(pooled_BC[b], expected_C)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=40))
def test_blocks_hold_every_event_once_and_are_at_most_half_padding(lengths):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    blocks = Blocks.of(Rows.of(offsets, int(offsets[-1])), 64)
    assert torch.equal(blocks.events[blocks.places_L], torch.arange(sum(lengths)))
    assert len(blocks.events) <= 1.5 * sum(lengths)
    assert len(blocks.blocks) <= 2 * 13, "as many as classes of lengths, whatever the batch"
