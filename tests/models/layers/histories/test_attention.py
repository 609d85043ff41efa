"""Attention with the candidate as query against a loop over events."""

import pytest
import torch
from history_examples import LENGTHS, make_events
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.histories import TargetAttention, attention


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_attention_weighs_each_event_by_itself_and_the_candidate(lengths):
    """Against a loop over events with one linear layer over [candidate, event, side, product] and the position."""
    torch.manual_seed(1)
    pooling = TargetAttention(4, 2)
    torch.nn.init.normal_(pooling.position.weight)
    events_LC, offsets = make_events(lengths, 6)
    candidate_BQ = torch.randn(len(lengths), 4)
    expected_BC = torch.zeros(len(lengths), 6)
    for b, candidate_Q in enumerate(candidate_BQ):
        for position, event_C in enumerate(events_LC[offsets[b] : offsets[b + 1]].flip(0)):
            hidden_H = pooling.event(torch.cat([event_C, candidate_Q * event_C[:4]])) + pooling.candidate(candidate_Q)
            expected_BC[b] += pooling.score(hidden_H + pooling.position.weight[position]) * event_C
    torch.testing.assert_close(pooling(candidate_BQ, events_LC, offsets), expected_BC)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, candidates=st.integers(1, 4), cached=st.integers(1, 9))
def test_several_candidates_of_a_history_attend_as_each_alone(lengths, candidates, cached):
    torch.manual_seed(1)
    pooling = TargetAttention(4, 2)
    events_LC, offsets = make_events(lengths, 6)
    candidate_BNQ = torch.randn(len(lengths), candidates, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_CACHED_EVENTS", cached)
        together_BNC = pooling.pool_candidates(candidate_BNQ, events_LC, offsets)
    for n in range(candidates):
        torch.testing.assert_close(together_BNC[:, n], pooling(candidate_BNQ[:, n], events_LC, offsets))
