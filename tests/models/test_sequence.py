"""Pooling of histories against loops over rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_examples import SCHEMA

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from models import sequence
from models.sequence import Histories, LocalConvolution, TargetAttention, last_event, softmax_rows
from models.table_layout import TablesConfig

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
def test_attention_equals_each_row_alone_and_depends_on_the_candidate(lengths):
    torch.manual_seed(1)
    attention = TargetAttention(4, 2)
    events_LC, offsets = _events(lengths, 6)
    candidate_BQ = torch.randn(len(lengths), 4)
    pooled_BC = attention(candidate_BQ, events_LC, offsets)
    other_BC = attention(candidate_BQ + 1, events_LC, offsets)
    for b, length in enumerate(lengths):
        own_LC = events_LC[offsets[b] : offsets[b + 1]]
        alone_C = attention(candidate_BQ[b : b + 1], own_LC, torch.tensor([0, length]))[0]
        torch.testing.assert_close(pooled_BC[b], alone_C)
        assert bool(torch.equal(pooled_BC[b], other_BC[b])) == (length < 2)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, candidates=st.integers(1, 4), cached=st.integers(1, 9))
def test_several_candidates_of_a_history_attend_as_each_alone(lengths, candidates, cached):
    torch.manual_seed(1)
    attention = TargetAttention(4, 2)
    events_LC, offsets = _events(lengths, 6)
    candidate_BNQ = torch.randn(len(lengths), candidates, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "_CACHED_EVENTS", cached)
        together_BNC = attention(candidate_BNQ, events_LC, offsets)
    for n in range(candidates):
        torch.testing.assert_close(together_BNC[:, n], attention(candidate_BNQ[:, n], events_LC, offsets))


def test_attention_tells_new_events_from_old_ones():
    attention = TargetAttention(2, 0)
    with torch.no_grad():
        attention.score[1].weight.fill_(1.0)
        attention.position.weight[0] = 100.0
    events_LC, candidate_BQ = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.ones(1, 2)
    pooled_BC = attention(candidate_BQ, events_LC, torch.tensor([0, 3]))
    torch.testing.assert_close(pooled_BC, events_LC[2:])


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_weights_of_a_row_are_its_softmax(lengths):
    scores_L1, offsets = _events(lengths, 1)
    weights_L1 = softmax_rows(scores_L1 * 50, offsets)
    for b in range(len(lengths)):
        own = slice(offsets[b], offsets[b + 1])
        torch.testing.assert_close(weights_L1[own], (scores_L1[own] * 50).softmax(0))


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_convolution_sees_neighbours_of_its_own_row_only(lengths):
    torch.manual_seed(1)
    convolution = LocalConvolution(3)
    events_LC, offsets = _events(lengths, 3)
    pooled_BC = convolution(events_LC, offsets)
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
