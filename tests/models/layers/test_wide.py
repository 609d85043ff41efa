"""The wide part: what it adds, how it loses numbers, and the states of earlier versions."""

from typing import cast

import torch
from ranker_examples import SCHEMA, random_batch

from models.layers.heads import Heads
from models.layers.wide import Wide
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables


def make_ranker(**model: object) -> Ranker:
    config = RankerConfig.model_validate({"dim": 4, "wide": True, "tower": {"kind": "mlp", "hidden": [8]}} | model)
    return Ranker(config, SCHEMA, SparseTables(SCHEMA, config)).eval()


def test_it_is_a_linear_model_of_ids_and_numbers() -> None:
    part = Wide(3, 2)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    ids, dense = {"a": torch.randn(5, 1), "b": torch.randn(5, 1)}, torch.randn(5, 3)
    assert part.linear is not None
    expected = ids["a"] + ids["b"] + dense @ part.linear.weight.T + part.bias
    torch.testing.assert_close(part(ids, dense), expected)


def test_without_numbers_it_has_a_bias_only() -> None:
    part = Wide(0, 1)
    assert [name for name, _ in part.named_parameters()] == ["bias"]
    assert part({"a": torch.ones(4, 1)}, torch.empty(4, 0)).tolist() == [[1.0]] * 4


def test_columns_of_zeros_leave_with_nothing_changed() -> None:
    part, dense = Wide(4, 1), torch.randn(6, 4)
    assert part.linear is not None
    torch.nn.init.normal_(part.linear.weight)
    dense[:, [0, 2]] = 0
    before = part({}, dense)
    part.narrow_inputs(torch.tensor([1, 3]))
    torch.testing.assert_close(part({}, dense[:, [1, 3]]), before)


def test_a_ranker_adds_it_to_what_the_heads_say() -> None:
    ranker, batch = make_ranker(), random_batch(7)
    assert ranker.wide is not None
    before = ranker(batch)
    torch.nn.init.ones_(ranker.wide.bias)
    torch.testing.assert_close(ranker(batch), before + 1)
    cast(Heads, ranker.heads).start_at_zero()
    assert ranker(batch).tolist() == [[1.0, 1.0]] * 7


def test_states_of_earlier_versions_load() -> None:
    ranker = make_ranker()
    state = ranker.state_dict()
    former = {name: tensor for name, tensor in state.items() if not name.startswith("wide.")}
    former["wide_bias"] = torch.tensor([0.5, -0.5])
    ranker.load_state_dict(former)
    assert ranker.wide is not None
    assert ranker.wide.bias.tolist() == [0.5, -0.5]
