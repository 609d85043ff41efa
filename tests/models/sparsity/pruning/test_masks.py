"""Which weights, rows and units go, and when: the rules behind the levers, on plain tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.sparsity.config import SparsityConfig
from models.sparsity.lever import Schedule
from models.sparsity.penalties.l1 import soft_threshold_
from models.sparsity.pruning.dynamic_sparse import connectivity, erdos_renyi, moved
from models.sparsity.pruning.row_pruning import kept_rows
from models.sparsity.pruning.weight_pruning import magnitude_masks


@given(begin=st.floats(0, 1), length=st.floats(0, 1), total=st.integers(1, 400), every=st.integers(1, 30))
def test_a_schedule_rises_once_to_one_before_training_ends(begin: float, length: float, total: int, every: int) -> None:
    ramp = Schedule(begin=begin, end=min(begin + length, 1.0), every=every).steps(total)
    shares = [ramp.share(step) for step in range(total)]
    assert shares == sorted(shares)
    due = [step for step in range(total) if ramp.due(step)]
    assert ramp.share(due[-1]) == 1.0
    assert 0 <= due[-1] < total


@given(sparsity=st.floats(0, 0.99), rows=st.lists(st.integers(3, 40), min_size=1, max_size=4))
@pytest.mark.parametrize("scope", ["table", "global"])
def test_exactly_the_asked_share_of_rows_goes_and_never_a_reserved_one(
    scope: str, sparsity: float, rows: list[int]
) -> None:
    scores = {str(i): torch.rand(n, generator=torch.Generator().manual_seed(n)) for i, n in enumerate(rows)}
    kept = kept_rows(scores, dict.fromkeys(scores, 2), sparsity, scope)  # type: ignore[arg-type]
    assert all(bool(mask[:2].all()) for mask in kept.values())
    values = [len(mask) - 2 for mask in kept.values()]
    gone = [int((~mask).sum()) for mask in kept.values()]
    if scope == "global":
        assert sum(gone) == round(sparsity * sum(values))
    else:
        assert gone == [round(sparsity * n) for n in values]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_largest_weights_stay(scope: str) -> None:
    scores = {"a": torch.arange(1.0, 101).view(10, 10), "b": torch.arange(1.0, 51).view(5, 10)}
    masks = magnitude_masks(scores, 0.8, scope)  # type: ignore[arg-type]
    assert sum(int(mask.sum()) for mask in masks.values()) == 30
    for name, mask in masks.items():
        assert scores[name][mask].min() > scores[name][~mask].max()


@given(density=st.floats(0.02, 1.0))
def test_erdos_renyi_keeps_the_density_and_gives_small_layers_more(density: float) -> None:
    shapes = {"big": torch.Size([400, 300]), "small": torch.Size([40, 30]), "stack": torch.Size([4, 60, 80])}
    densities = erdos_renyi(shapes, density)
    alive = sum(densities[name] * shape.numel() for name, shape in shapes.items())
    assert alive == pytest.approx(density * sum(shape.numel() for shape in shapes.values()), rel=1e-6)
    assert densities["small"] >= densities["big"]
    assert max(densities.values()) <= 1


def test_a_move_keeps_the_count_drops_small_weights_and_grows_by_gradient() -> None:
    mask = torch.tensor([True, True, True, True, False, False, False, False])
    weight = torch.tensor([4.0, -3.0, 0.1, -0.2, 0.0, 0.0, 0.0, 0.0])
    growth = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0, 5.0, 2.0, 4.0])
    after = moved(mask, weight, growth, 0.5)
    assert after.tolist() == [True, True, False, False, False, True, False, True]


@pytest.mark.parametrize("pattern", ["block", "local"])
@pytest.mark.parametrize("shape", [(32, 64), (3, 64, 32)])
def test_fixed_patterns_have_their_density_in_every_row(pattern: str, shape: tuple[int, ...]) -> None:
    mask = connectivity(torch.Size(shape), pattern, 4)  # type: ignore[arg-type]
    assert mask.shape == shape
    assert bool((mask.float().mean(-1) == 0.25).all())


def test_soft_threshold_reaches_exact_zeros() -> None:
    weight = torch.tensor([0.5, -0.5, 0.05, -0.05, 0.0])
    assert soft_threshold_(weight, 0.1).tolist() == pytest.approx([0.4, -0.4, 0, 0, 0])
    assert math.copysign(1, float(weight[2])) * float(weight[2]) == 0


@pytest.mark.parametrize(
    ("block", "key", "text"),
    [
        ({"row_pruning": {"sparsity": 1.5}}, "sparsity", "0 to 1"),
        ({"row_pruning": {"sparsity": 0.5, "end": 1.2}}, "end", "0 to 1"),
        ({"row_pruning": {"sparsity": 0.5, "begin": 0.9}}, "row_pruning", "begin=0.9 must be between 0 and end=0.3"),
        ({"quantization": {"table_bits": 3}}, "table_bits", "32, 16, 8, 4 or 2"),
        ({"quantization": {"table_bits": 8, "byte_budget": 10}}, "quantization", "byte_budget"),
        ({"quantization": {"table_bits": 8, "table_step": 1.0}}, "quantization", "table_step"),
        ({"quantization": {"dense": "int4", "dense_step": 1.0}}, "quantization", "dense_step"),
        ({"quantization": {"activations": "int8"}}, "quantization", "set dense to int8 or int4"),
        ({"quantization": {"activations": "int4"}}, "activations", "'int8'"),
        ({"quantization": {"table_step": 5.0}}, "table_step", "0 (excluded) to 4"),
        ({"quantization": {"table_step": 1.0, "aware": True}}, "quantization", "aware"),
        ({"dropconnect": {"rate": 1.0}}, "rate", "0 (excluded) to 1 (excluded)"),
        ({"dynamic_sparse": {"density": 0}}, "density", "0 (excluded) to 1"),
        ({"l1": {"dense": -1}}, "dense", "0 to"),
        ({"k_winners": {"density": 2}}, "density", "to 1"),
    ],
)
def test_bad_settings_are_refused_with_key_and_range(block: dict[str, object], key: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SparsityConfig.model_validate(block)
    first = caught.value.errors()[0]
    assert key in first["loc"]
    assert text in first["msg"]
