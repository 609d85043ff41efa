"""Self-attentive poolings: jagged blocks against padded matrices, causality, candidates, and work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.layers.histories import Bst, Hstu, self_attention
from models.layers.histories.hstu import HstuLayer
from models.layers.histories.self_attention import AttentionLayer, SelfAttention

WINDOW = 4
QUERY, SIDE = 5, 3
LENGTHS = st.lists(st.integers(0, 14), min_size=1, max_size=7)
KINDS = pytest.mark.parametrize("kind", [Hstu, Bst])


@pytest.fixture(autouse=True)
def narrow_window(monkeypatch):
    monkeypatch.setattr(self_attention, "WINDOW", WINDOW)


def make(kind: type[SelfAttention], side: int = SIDE) -> SelfAttention:
    """A pooling in which no weight is zero."""
    torch.manual_seed(1)
    pooling = kind(QUERY, side)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return pooling


def make_rows(lengths: list[int], side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(len(lengths), QUERY), torch.randn(sum(lengths), QUERY + side), offsets


def padded(pooling: SelfAttention, candidate_BQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
    """Every row padded at its start to the longest, its candidate last; one matrix of scores per head."""
    events = [events_LC[a:b] for a, b in zip(offsets.tolist(), offsets[1:].tolist(), strict=False)]
    longest = max(map(len, events))
    events_BTC = torch.stack([F.pad(own_lC, (0, 0, longest - len(own_lC), 0)) for own_lC in events])
    as_event_BC = F.pad(candidate_BQ, (0, events_LC.shape[1] - pooling.query))
    x_BTH = pooling.token(torch.cat([events_BTC, as_event_BC.unsqueeze(1)], 1))
    x_BTH[:, -1] += pooling.now
    place_T = torch.arange(longest + 1)
    distance_TT = place_T.unsqueeze(1) - place_T
    seen_TT = (distance_TT >= 0) & ((distance_TT < WINDOW) | (place_T == longest).unsqueeze(1))
    there_BT = place_T >= longest - offsets.diff().unsqueeze(1)
    seen_B1TT = (seen_TT & there_BT.unsqueeze(1)).unsqueeze(1) | torch.eye(longest + 1).bool()
    for layer in pooling.layers:
        bias_BhTT = layer.position(distance_TT.clamp(0, 255)).permute(2, 0, 1) + time_bias(layer, events_BTC, pooling)
        x_BTH = padded_layer(layer, x_BTH, bias_BhTT, seen_B1TT)
    return torch.where(offsets.diff().unsqueeze(1) > 0, pooling.out(x_BTH[:, -1]), 0.0)


def time_bias(layer: AttentionLayer, events_BTC: Tensor, pooling: SelfAttention) -> Tensor:
    if layer.time is None:
        return torch.zeros(())
    asked_BT, told_BT = layer.time(events_BTC[..., pooling.query :]).chunk(2, -1)
    asked_BT = torch.cat([asked_BT, layer.now.expand(len(asked_BT), 1, -1)], 1)
    return heads(asked_BT) @ heads(F.pad(told_BT, (0, 0, 0, 1))).mT


def heads(x_BTH: Tensor) -> Tensor:
    return x_BTH.unflatten(2, (2, -1)).transpose(1, 2)


def padded_layer(layer: AttentionLayer, x_BTH: Tensor, bias_BhTT: Tensor, seen_B1TT: Tensor) -> Tensor:
    normal_BTH = layer.norm(x_BTH)
    if isinstance(layer, HstuLayer):
        key_BTH, value_BTH = F.silu(layer.key_value(normal_BTH)).chunk(2, 2)
        query_BTH, gate_BTH = F.silu(layer.query_gate(normal_BTH)).chunk(2, 2)
        scores = heads(query_BTH) @ heads(key_BTH).mT + bias_BhTT
        attended_BTH = (F.silu(scores) * seen_B1TT / 64 @ heads(value_BTH)).transpose(1, 2).flatten(2)
        return x_BTH + layer.mix(layer.norm_attended(attended_BTH) * gate_BTH)
    key_BTH, value_BTH = layer.key_value(normal_BTH).chunk(2, 2)
    scores = heads(layer.query(normal_BTH)) @ heads(key_BTH).mT / 4 + bias_BhTT
    weights = scores.masked_fill(~seen_B1TT, -torch.inf).softmax(3)
    x_BTH = x_BTH + layer.mix((weights @ heads(value_BTH)).transpose(1, 2).flatten(2))
    return x_BTH + layer.forward_out(F.leaky_relu(layer.forward_in(layer.norm_mixed(x_BTH))))


@KINDS
@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, cached=st.sampled_from([1, 100, 1 << 18]), side=st.sampled_from([0, SIDE]))
def test_blocks_give_the_outputs_and_gradients_of_padded_matrices(kind, lengths, cached, side):
    pooling, (candidate_BQ, events_LC, offsets) = make(kind, side), make_rows(lengths, side)
    inputs = [candidate_BQ.requires_grad_(), events_LC.requires_grad_(), *pooling.parameters()]
    aim_BC = torch.randn(len(lengths), QUERY + side)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_attention, "_CACHED_SCORES", cached)
        actual_BC = pooling(candidate_BQ, events_LC, offsets)
        actual_grads = torch.autograd.grad((actual_BC * aim_BC).sum(), inputs)
    expected_BC = padded(pooling, candidate_BQ, events_LC, offsets)
    expected_grads = torch.autograd.grad((expected_BC * aim_BC).sum(), inputs)
    torch.testing.assert_close(actual_BC, expected_BC, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(actual_grads, expected_grads, atol=1e-4, rtol=1e-3)


@KINDS
@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, candidates=st.integers(1, 4), cached=st.integers(1, 60))
def test_several_candidates_of_a_history_are_read_as_each_alone(kind, lengths, candidates, cached):
    pooling, (_, events_LC, offsets) = make(kind), make_rows(lengths)
    candidate_BNQ = torch.randn(len(lengths), candidates, QUERY)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_attention, "_CACHED_SCORES", cached)
        together_BNC = pooling.pool_candidates(candidate_BNQ, events_LC, offsets)
        each = [pooling(candidate_BQ, events_LC, offsets) for candidate_BQ in candidate_BNQ.unbind(1)]
    torch.testing.assert_close(together_BNC, torch.stack(each, 1), atol=1e-5, rtol=1e-4)


@KINDS
def test_events_are_independent_of_later_ones_of_the_candidate_and_of_other_rows(kind, monkeypatch):
    pooling, (candidate_BQ, events_LC, offsets) = make(kind), make_rows([6, 0, 9])
    seen = []
    combine = kind.layer.combine
    monkeypatch.setattr(kind.layer, "combine", lambda *args: seen.append(combine(*args)) or seen[-1])

    def after_first_layer(candidate_BQ: Tensor, events_LC: Tensor) -> Tensor:
        seen.clear()
        with torch.no_grad():
            pooling(candidate_BQ, events_LC, offsets)
        return next(x for x in seen if len(x) == len(events_LC))

    before_LH = after_first_layer(candidate_BQ, events_LC)
    assert torch.equal(after_first_layer(candidate_BQ + 1, events_LC), before_LH)
    changed_LC = events_LC.clone()
    changed_LC[8] += 1
    changed_L = (after_first_layer(candidate_BQ, changed_LC) != before_LH).any(1)
    assert changed_L.nonzero().flatten().tolist() == [8, 9, 10, 11], "itself and as many after it as the window holds"


@KINDS
def test_reduced_precision_gives_nearly_the_same(kind):
    pooling, (candidate_BQ, events_LC, offsets) = make(kind), make_rows([3, 0, 9])
    with torch.no_grad():
        expected_BC = pooling(candidate_BQ, events_LC, offsets)
        with torch.autocast("cpu", torch.bfloat16):
            actual_BC = pooling(candidate_BQ, events_LC, offsets)
            several_BNC = pooling.pool_candidates(candidate_BQ.unsqueeze(1), events_LC, offsets)
    assert actual_BC.dtype == several_BNC.dtype == torch.float32
    scale = expected_BC.abs().max().item()
    torch.testing.assert_close(actual_BC, expected_BC, atol=0.05 * scale, rtol=0)
    torch.testing.assert_close(several_BNC[:, 0], actual_BC, atol=0.05 * scale, rtol=0)


@KINDS
def test_work_is_linear_in_events_beyond_the_window(kind):
    pooling = make(kind)
    whole = [sum(pooling.work(events).values()) for events in (10, 20, 30)]
    assert whole[2] - whole[1] == whole[1] - whole[0]
    assert set(pooling.work(10)) <= {name for name, _ in pooling.named_modules()}
    assert pooling.work(10)["token"] == 11 * 2 * pooling.token.weight.numel()
    every, last = pooling.work(10)["layers.0.position"], pooling.work(10)["layers.1.position"]
    assert (every, last) == ((1 + 2 + 3 + 4 * 7 + 11) * 2 * (2 * 16 + 4) * 2, 11 * 2 * (2 * 16 + 4) * 2)
