"""What parts answer for themselves, what they refuse, and kinds that are registered from outside."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from ranker_examples import SCHEMA, random_batch
from torch import Tensor, nn

from data_pipelines.config.base import register
from data_pipelines.errors import UserError
from models.layers.interactions import Fields, Interaction, InteractionConfig
from models.layers.part import Component, module_components
from models.layers.towers import DenseTower, DenseTowerConfig
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables

SHAPES = [
    {"interaction": {"kind": kind}, "tower": tower, **more}
    for kind in ("cross", "fm", "dot", "multiplicative", "none")
    for tower in ({"kind": "mlp", "hidden": [8, 4]}, {"kind": "moe", "experts": 4, "hidden": 8, "shared": True})
    for more in (
        {},
        {"wide": True, "batch_norm": True, "pooling": {"likes": "attention"}},
        {"pooling": {"likes": "hstu"}},
    )
]


def make_ranker(**model: object) -> Ranker:
    config = RankerConfig.model_validate({"dim": 4} | model)
    return Ranker(config, SCHEMA, SparseTables(SCHEMA, config))


@pytest.fixture
def gated() -> Iterator[type[InteractionConfig]]:
    """An interaction from outside the packages, registered while the test runs."""

    @register
    class GatedConfig(InteractionConfig):
        kind: Literal["gated"] = "gated"

        def build(self, fields: Fields) -> "Gated":
            width = sum(fields.widths) + fields.dense
            return Gated(self, width, width)

    class Gated(Interaction):
        def __init__(self, config: InteractionConfig, in_width: int, out_width: int) -> None:
            super().__init__(config, in_width, out_width)
            self.gate = nn.Parameter(torch.eye(in_width))

        def forward(self, x_BD: Tensor) -> Tensor:
            return x_BD * torch.sigmoid(x_BD @ self.gate)

    yield GatedConfig
    del InteractionConfig._registered["gated"]


@pytest.mark.parametrize("model", SHAPES)
def test_every_tensor_of_the_dense_part_is_in_exactly_one_component(model: dict[str, object]) -> None:
    ranker = make_ranker(**model)
    numbers: dict[str, int] = {}
    for component in ranker.components():
        for name, tensor in component.tensors.items():
            numbers[name] = numbers.get(name, 0) + tensor.numel()
    assert numbers == {name: tensor.numel() for name, tensor in ranker.dense_state().items()}


def test_the_work_of_a_part_is_two_per_weight_and_row_and_of_experts_that_of_the_chosen_ones() -> None:
    dense = make_ranker(interaction={"kind": "none"}, tower={"kind": "mlp", "hidden": [8, 4]})
    width = dense.interaction.out_width
    assert dense.tower.flops(10) == 10 * 2 * (width * 8 + 8 * 4)
    sparse = make_ranker(tower={"kind": "moe", "experts": 4, "top_k": 2, "hidden": 8, "shared": True})
    width = sparse.tower.out_width
    assert sparse.tower.flops(1) == 2 * (4 * width) + (2 + 1) * 2 * (2 * width * 8)


def test_a_kind_registered_later_is_accepted_trained_and_told_among_the_known_ones(gated: object) -> None:
    ranker = make_ranker(interaction={"kind": "gated"}, tower={"kind": "mlp", "hidden": [4]})
    assert ranker(random_batch(5)).shape == (5, 2)
    assert RankerConfig.model_validate_json(ranker.config.model_dump_json()) == ranker.config
    with pytest.raises(ValidationError, match=r"'gate'.*'cross'.*'gated'"):
        RankerConfig.model_validate({"interaction": {"kind": "gate"}})


def test_what_a_part_does_not_implement_it_refuses_by_name(gated: object) -> None:
    ranker = make_ranker(interaction={"kind": "gated"}, tower={"kind": "mlp", "hidden": [4]})
    with pytest.raises(UserError, match=r"Gated cannot say whether columns .* implement Gated\.narrows_inputs"):
        _ = ranker.narrows_inputs
    with pytest.raises(UserError, match=r"Gated cannot be computed in int8 .* implement Gated\.int8_inputs"):
        ranker.int8_inputs()
    with pytest.raises(UserError, match=r"Gated cannot replace its matrices .* implement Gated\.factor"):
        ranker.interaction.factor(2)
    with pytest.raises(UserError, match=r"'interaction\.gate' per row is unknown .* implement components"):
        list(ranker.components())


def test_a_component_that_leaves_a_tensor_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_first(self: DenseTower, path: str) -> Iterator[Component]:
        yield next(module_components(self, path))

    monkeypatch.setattr(DenseTower, "components", only_first)
    with pytest.raises(UserError, match=r"'tower\.layers\.2\.bias' is in no component"):
        list(make_ranker(tower={"kind": "mlp", "hidden": [8, 4]}).components())


def test_units_of_several_layers_with_k_winners_are_refused_and_of_one_layer_keep_their_winners() -> None:
    with pytest.raises(UserError, match=r"model\.tower\.k_winners .* one layer"):
        make_ranker(tower={"kind": "mlp", "hidden": [8, 4], "k_winners": 0.5}).unit_groups()
    tower = DenseTower(6, DenseTowerConfig(hidden=(8,), k_winners=0.5)).eval()
    (group,) = tower.unit_groups("tower", ())
    alive_U = torch.tensor([True, False, True, True, True, False, True, True])
    group.scale_(alive_U.float())
    x_ND = torch.randn(20, 6)
    before_NW = tower(x_ND)
    kept_W = tower.narrow_units([alive_U])
    assert tower.config.hidden == (6,)
    assert tower.config.k_winners == pytest.approx(4 / 6)
    torch.testing.assert_close(tower(x_ND), before_NW[:, kept_W])


def test_former_keys_are_accepted_and_both_names_at_once_are_not() -> None:
    tower = RankerConfig.model_validate({"tower": {"kind": "moe", "winners": 0.5, "spread": True}}).tower
    assert tower.model_dump()["k_winners"] == 0.5
    assert tower.shards_experts()
    with pytest.raises(ValidationError, match="spread is the former name of expert_parallel"):
        RankerConfig.model_validate({"tower": {"kind": "moe", "spread": True, "expert_parallel": True}})


def test_weights_of_earlier_versions_load_under_their_former_names() -> None:
    ranker = make_ranker(interaction={"kind": "fm"}, tower={"kind": "moe", "experts": 4, "hidden": 8})
    former = {
        name.replace("interaction.dense_field", "dense_field").replace("active_E", "alive_E"): tensor.clone() + 1
        if tensor.is_floating_point()
        else ~tensor
        for name, tensor in ranker.dense_state().items()
    }
    missing, unexpected = ranker.load_state_dict(former, strict=False)
    assert not unexpected
    assert all(name.startswith("tables.") for name in missing)
    assert not ranker.tower.mixtures[0].router.active_E.any()
    assert torch.equal(ranker.interaction.dense_field.weight, former["dense_field.weight"])


def test_the_kind_of_an_interaction_can_be_changed_alone() -> None:
    config = RankerConfig.model_validate({"interaction": {"kind": "fm", "layers": 3, "rank": None}})
    assert config.interaction.model_dump() == {"kind": "fm"}
    assert RankerConfig.model_validate({"interaction": {"layers": 2}}).interaction.kind == "cross"
