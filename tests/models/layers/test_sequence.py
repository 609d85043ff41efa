"""Pooling of histories against loops over rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_examples import SCHEMA

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from models.layers import sequence
from models.layers.sequence import Histories, LocalConvolution, TargetAttention, last_event
from models.tables.config import TablesConfig

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def _events(lengths: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(sum(lengths), width), offsets


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_last_is_the_newest_event_of_each_row(lengths):
    events_LC, offsets = _events(lengths, 3)
    pooled_BC = last_event(events_LC, offsets)
    for b, length in enumerate(lengths):
        expected_C = events_LC[offsets[b + 1] - 1] if length else torch.zeros(3)
        assert torch.equal(pooled_BC[b], expected_C)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_attention_weighs_each_event_by_itself_and_the_candidate(lengths):
    """Against a loop over events with one linear layer over [candidate, event, side, product] and the position."""
    torch.manual_seed(1)
    attention = TargetAttention(4, 2)
    torch.nn.init.normal_(attention.position.weight)
    events_LC, offsets = _events(lengths, 6)
    candidate_BQ = torch.randn(len(lengths), 4)
    expected_BC = torch.zeros(len(lengths), 6)
    for b, candidate_Q in enumerate(candidate_BQ):
        for position, event_C in enumerate(events_LC[offsets[b] : offsets[b + 1]].flip(0)):
            hidden_H = attention.event(torch.cat([event_C, candidate_Q * event_C[:4]])) + attention.candidate(
                candidate_Q
            )
            expected_BC[b] += attention.score(hidden_H + attention.position.weight[position]) * event_C
    torch.testing.assert_close(attention(candidate_BQ, events_LC, offsets), expected_BC)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, candidates=st.integers(1, 4), cached=st.integers(1, 9))
def test_several_candidates_of_a_history_attend_as_each_alone(lengths, candidates, cached):
    torch.manual_seed(1)
    attention = TargetAttention(4, 2)
    events_LC, offsets = _events(lengths, 6)
    candidate_BNQ = torch.randn(len(lengths), candidates, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "_CACHED_EVENTS", cached)
        together_BNC = attention.pool_candidates(candidate_BNQ, events_LC, offsets)
    for n in range(candidates):
        torch.testing.assert_close(together_BNC[:, n], attention(candidate_BNQ[:, n], events_LC, offsets))


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


def test_the_candidate_of_a_column_is_the_feature_that_shares_its_table():
    histories = Histories(SCHEMA, TablesConfig(pooling={"likes": "attention"}))
    assert histories.columns == {"likes": ["likes.movie", "likes.genres", "likes.age"]}
    assert histories.candidates == {"likes": ["movie", "genres"]}


def test_attention_without_a_candidate_is_refused():
    sparse = tuple(spec for spec in SCHEMA.sparse if spec.name not in ("movie", "genres"))
    schema = Schema(tables=SCHEMA.tables, sparse=sparse, dense=(), tasks=("like",))
    with pytest.raises(UserError, match=r"model\.pooling\.likes: attention needs a candidate"):
        Histories(schema, TablesConfig(pooling={"likes": "attention"}))
