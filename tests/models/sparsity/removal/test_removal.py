"""What is zero is taken out of the weights, and not one logit changes: random masks over random rankers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_examples import SCHEMA, random_batch

from data_pipelines.batch import NULL_ID
from models.codecs.quantization import row_bytes
from models.moe.experts import mixtures
from models.ranker import Ranker, RankerConfig
from models.sparsity.compression.low_rank import LowRank, LowRankConfig
from models.sparsity.compression.precision import Quantization, QuantizationConfig
from models.sparsity.penalties.feature_gates import gate_values
from models.sparsity.penalties.groups import remove_dead_dims
from models.sparsity.pruning.post_pruning import row_saliency, within_budget
from models.sparsity.removal.experts import remove_dead_experts
from models.sparsity.removal.features import drop_features
from models.sparsity.removal.units import remove_dead_units
from models.sparsity.tables import lookup_counts
from models.tables.plain import PlainTables
from models.tables.plan import OOV_ID, lookup_plan
from models.weights import Weights

TOWERS = {
    "mlp": {"kind": "mlp", "hidden": [24, 12]},
    "moe": {"kind": "moe", "experts": 6, "top_k": 2, "hidden": 12, "shared": True, "blocks": 2},
}
SCALE = 0.3


def random_weights(seed: int, **model: object) -> Weights:
    torch.manual_seed(seed)
    config = RankerConfig.model_validate({"dim": 6, "pooling": {"genres": "sum", "tags": "mean"}} | model)
    tables = {
        layout.name: torch.randn(layout.rows, layout.dim) * SCALE for layout in lookup_plan(SCHEMA, config).tables
    }
    ranker = Ranker(config, SCHEMA, PlainTables(SCHEMA, config, tables, {}, {}))
    return Weights(config, SCHEMA, tables, {name: tensor.clone() for name, tensor in ranker.dense_state().items()})


def logits(weights: Weights) -> torch.Tensor:
    batch = random_batch(32, seed=1)
    names = {feature.name for feature in weights.schema.dense}
    columns = torch.cat([torch.full((feature.width,), feature.name in names) for feature in SCHEMA.dense])
    batch.dense = batch.dense[:, columns]
    with torch.no_grad():
        result: torch.Tensor = weights.to_ranker()(batch)
    return result


def assert_same_logits(before: torch.Tensor, weights: Weights) -> None:
    assert torch.allclose(before, logits(weights), atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), tower=st.sampled_from(sorted(TOWERS)), alive=st.floats(0, 1))
def test_dead_units_leave_the_matrices(seed: int, tower: str, alive: float) -> None:
    weights = random_weights(seed, tower=TOWERS[tower])
    with weights.narrowing() as ranker:
        for group in ranker.unit_groups():
            group.scale_((torch.rand(group.units) < alive).float())
    numbers = sum(tensor.numel() for tensor in weights.dense.values())
    before = logits(weights)
    remove_dead_units(weights)
    assert_same_logits(before, weights)
    assert sum(tensor.numel() for tensor in weights.dense.values()) <= numbers
    if alive < 0.1 and tower == "mlp":
        assert sum(weights.config.tower.hidden) < 36  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), dead=st.sets(st.integers(0, 5), max_size=4))
def test_dead_experts_leave_stack_and_router(seed: int, dead: set[int]) -> None:
    weights = random_weights(seed, tower=TOWERS["moe"])
    active_E = torch.tensor([e not in dead for e in range(6)])
    with weights.narrowing() as ranker:
        for mixture in mixtures(ranker).values():
            mixture.experts.scale_(active_E.float())
            mixture.router.active_E.copy_(active_E)
    before = logits(weights)
    remove_dead_experts(weights)
    assert_same_logits(before, weights)
    assert weights.config.tower.experts == 6 - len(dead)  # type: ignore[union-attr]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_dead_dimensions_leave_the_tables(seed: int) -> None:
    weights = random_weights(seed)
    for table_Rd in weights.tables.values():
        table_Rd *= (torch.rand(table_Rd.shape[1]) < 0.5).float()
    before = logits(weights)
    remove_dead_dims(weights)
    assert_same_logits(before, weights)
    assert all(bool((table != 0).any(0).all()) for table in weights.tables.values() if table.shape[1] > 1)


@pytest.mark.parametrize("kind", ["cross", "none", "fm", "multiplicative"])
@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_features_with_closed_gates_leave_the_ranker(kind: str, tower: str) -> None:
    weights = random_weights(3, interaction={"kind": kind, "layers": 2}, tower=TOWERS[tower], gates=True)
    closed = {"user", "likes.age", "tags", "year"} if kind != "fm" else {"user", "likes.age", "tags"}
    weights.dense["gates.sparse_F"] = torch.tensor([-1.0 if f.name in closed else 1.0 for f in SCHEMA.sparse])
    weights.dense["gates.dense_G"] = torch.tensor([-1.0 if f.name in closed else 1.0 for f in SCHEMA.dense])
    before = logits(weights)
    drop_features(weights, {name for name, gate in gate_values(weights).items() if gate == 0})
    assert_same_logits(before, weights)
    if kind in ("cross", "none") and tower == "mlp":
        assert not closed & set(weights.schema.feature_names)
        assert "user" not in weights.tables
    else:
        assert int(weights.keep["user"].sum()) == SCHEMA.table("user").reserved


@pytest.mark.parametrize("rank", [None, 4])
def test_a_low_rank_cross_can_lose_features_too(rank: int | None) -> None:
    weights = random_weights(
        4, interaction={"kind": "cross", "layers": 2, "rank": rank}, tower=TOWERS["mlp"], gates=True
    )
    weights.dense["gates.sparse_F"][0] = -1
    before = logits(weights)
    drop_features(weights, {"user"})
    assert_same_logits(before, weights)
    assert "user" not in weights.schema.feature_names


def test_factors_of_full_rank_change_nothing_and_of_low_rank_little_where_rank_is_low() -> None:
    weights = random_weights(5)
    for name, table_Rd in weights.tables.items():
        weights.tables[name] = torch.randn(len(table_Rd), 2) @ torch.randn(2, table_Rd.shape[1]) * SCALE
    before = logits(weights)
    LowRank(LowRankConfig(energy=0.999999, cross=53)).shrink(weights)
    assert_same_logits(before, weights)
    assert {table.shape[1] for table in weights.tables.values()} == {2}
    assert weights.config.interaction.rank == 53


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.1, 1))
def test_pruned_rows_are_looked_up_as_oov(seed: int, share: float) -> None:
    """The reference: tables whose pruned rows are copies of the OOV row."""
    weights = random_weights(seed)
    for spec in SCHEMA.tables:
        weights.keep[spec.name] = torch.rand(spec.rows) < share
        weights.keep[spec.name][: spec.reserved] = True
    copied = random_weights(seed)
    for name, table_Rd in copied.tables.items():
        table_Rd[~weights.keep[name]] = table_Rd[OOV_ID].clone()
    assert_same_logits(logits(copied), weights)


@given(budget=st.integers(0, 4000))
def test_a_budget_is_spent_on_the_best_rows(budget: int) -> None:
    scores = {"a": torch.rand(50, generator=torch.Generator().manual_seed(1)), "b": torch.rand(30)}
    scores["a"][NULL_ID] = scores["b"][NULL_ID] = torch.inf
    kept = within_budget(scores, {"a": 40, "b": 20}, budget)
    assert bool(kept["a"][NULL_ID] and kept["b"][NULL_ID])
    assert 40 * int(kept["a"].sum()) + 20 * int(kept["b"].sum()) <= max(budget, 60)
    for name, mask in kept.items():
        if not bool(mask.all()):
            assert scores[name][mask].min() >= scores[name][~mask].max()


def test_saliency_predicts_what_pruning_a_row_costs() -> None:
    weights = random_weights(6)
    batch = random_batch(32, seed=1)
    score_R = row_saliency(weights, [batch], ["binary", "binary"])["user"]
    used = batch.sparse["user"].values().unique().long()
    unused = torch.tensor(sorted(set(range(50)) - set(used.tolist())))
    assert float(score_R[unused].sum()) == 0
    assert bool((score_R[used[used != OOV_ID]] > 0).all())


def test_saliency_is_that_of_the_loss_a_task_is_trained_with() -> None:
    weights, batch = random_weights(0), random_batch(32)
    batch = replace(batch, labels=batch.labels + 5.0)
    squared = row_saliency(weights, [batch], ["regression", "regression"])
    entropy = row_saliency(weights, [batch], ["binary", "binary"])
    further = row_saliency(weights, [replace(batch, labels=batch.labels + 5.0)], ["regression", "regression"])
    assert not torch.allclose(squared["user"], entropy["user"])
    assert further["user"].sum() > 1.5 * squared["user"].sum()


def test_a_byte_budget_spares_the_tables_that_are_looked_up() -> None:
    weights = random_weights(0)
    batches = [random_batch(32, seed=seed) for seed in range(3)]
    counts = lookup_counts(weights, batches)
    by_hand = torch.zeros(weights.schema.tables[0].rows)
    for batch in batches:
        for feature in weights.schema.sparse:
            if feature.table == weights.schema.tables[0].name:
                bags = batch.bags(feature)
                by_hand += torch.bincount(bags.values().long(), minlength=len(by_hand))
    assert torch.equal(counts[weights.schema.tables[0].name], by_hand)
    lever = Quantization(QuantizationConfig(byte_budget=sum(t.numel() for t in weights.tables.values())))
    lever.calibrate(weights, batches, ["binary", "binary"])
    lever.shrink(weights)
    size = {name: len(table) * row_bytes(table.shape[1], weights.bits[name]) for name, table in weights.tables.items()}
    assert sum(size.values()) <= lever.config.byte_budget
    most = max(weights.tables, key=lambda name: float(counts[name].mean()))
    assert weights.bits[most] == max(weights.bits.values())
