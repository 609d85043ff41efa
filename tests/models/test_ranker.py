"""The ranker as a whole: every combination of parts, and what does not change a logit."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from ranker_examples import SCHEMA, random_batch, take_rows
from torchrec import KeyedJaggedTensor

from data_pipelines.batch import Batch, Schema
from data_pipelines.errors import UserError
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables

MLP = {"kind": "mlp", "hidden": [12]}
MOE = {"kind": "moe", "experts": 4, "hidden": 8, "shared": True}


def make_ranker(schema: Schema = SCHEMA, **settings: object) -> Ranker:
    config = RankerConfig.model_validate({"dim": 6, **settings})
    return Ranker(config, schema, SparseTables(schema, config))


@pytest.mark.parametrize(
    ("kind", "pooling", "tower"),
    [
        *itertools.product(
            ["cross", "fm", "dot", "multiplicative", "none"],
            ["mean", "sum", "last", "attention", "convolution", "hstu", "bst"],
            [MLP, MOE],
        )
    ],
)
def test_every_combination_of_parts_gives_logits_and_gradients(kind, pooling, tower):
    ranker = make_ranker(
        interaction={"kind": kind, "layers": 2}, pooling={"likes": pooling}, tower=tower, wide=True, dim=8
    )
    batch = random_batch(9)
    logits_BT = ranker(batch)
    assert logits_BT.shape == (9, 2)
    assert logits_BT.dtype == torch.float32
    loss = logits_BT.square().mean()
    if (auxiliary := ranker.auxiliary_loss()) is not None:
        loss = loss + auxiliary
    loss.backward()
    for name, parameter in ranker.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pooling", ["mean", "last", "attention", "convolution", "hstu", "bst"])
def test_a_row_scores_the_same_alone_as_among_others(pooling):
    ranker = make_ranker(pooling={"likes": pooling}, tower=MOE, wide=True).eval()
    batch = random_batch(11, seed=4)
    together = ranker(batch)
    for row in range(11):
        torch.testing.assert_close(ranker(take_rows(batch, row, row + 1))[0], together[row], atol=1e-5, rtol=1e-4)


def test_keys_of_a_batch_may_come_in_any_order_and_with_strangers():
    ranker = make_ranker(tower=MLP)
    batch = random_batch(5)
    keys = batch.sparse.keys()
    shuffled = batch.sparse.permute([*range(len(keys))][::-1])
    more = KeyedJaggedTensor.concat(
        [KeyedJaggedTensor.from_lengths_sync(["stranger"], torch.arange(5).int(), torch.ones(5).int()), shuffled]
    )
    again = Batch(more, batch.weighted, batch.dense, batch.labels, batch.rows)
    torch.testing.assert_close(ranker(again), ranker(batch))


def test_named_features_steer_the_router():
    ranker = make_ranker(tower=MOE, context=["genres", "image"])
    assert ranker.tower.mixtures[0].router.weight.shape == (4, 6 + 4)
    assert ranker(random_batch(7)).shape == (7, 2)
    assert sum(load.sum() for load in ranker.tokens_per_expert(reset=True).values()) == 14
    assert sum(load.sum() for load in ranker.tokens_per_expert().values()) == 0


@pytest.mark.parametrize("tasks", ["shared", "mmoe", "ple"])
def test_a_ranker_can_be_made_without_memory(tasks):
    """An artifact is compared with such a ranker before its weights are believed."""
    config = RankerConfig.model_validate({"dim": 6, "tower": MOE | {"experts": 6}, "tasks": {"kind": tasks}})
    with torch.device("meta"):
        state = Ranker(config, SCHEMA, torch.nn.Identity()).dense_state()
    wanted = make_ranker(tower=MOE | {"experts": 6}, tasks={"kind": tasks}).dense_state()
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in wanted.items()}


@pytest.mark.parametrize("kind", ["mmoe", "ple"])
def test_tasks_with_routers_of_their_own_differ_and_train(kind):
    ranker = make_ranker(tower={**MOE, "experts": 6, "blocks": 2}, tasks={"kind": kind}, context=["user"])
    logits_BT = ranker(random_batch(9))
    assert logits_BT.shape == (9, 2)
    logits_BT[:, 0].sum().backward()
    router_grad_ETC = ranker.tower.mixtures[0].router.weight.grad
    assert router_grad_ETC[:, 0].abs().sum() > 0
    assert router_grad_ETC[:, 1].abs().sum() == 0
    experts_used = ranker.tower.mixtures[0].experts.w1_EDH.grad.abs().sum((1, 2)) > 0
    if kind == "ple":
        assert not experts_used[[2, 5]].any()


def test_the_dense_state_is_everything_but_tables():
    ranker = make_ranker(tower=MOE)
    dense = ranker.dense_state()
    assert {name.split(".")[0] for name in dense} == {"standardize", "interaction", "tower", "heads"}
    assert len(ranker.state_dict()) == len(dense) + len(SCHEMA.tables)


def test_schemas_without_dense_or_with_one_feature_work():
    lone = Schema(tables=SCHEMA.tables[:1], sparse=SCHEMA.sparse[:1], dense=(), tasks=("click",))
    for kind in ("cross", "fm", "dot", "none"):
        assert make_ranker(lone, interaction={"kind": kind}, tower=MLP)(random_batch(3, schema=lone)).shape == (3, 1)
    numbers = Schema(tables=(), sparse=(), dense=SCHEMA.dense, tasks=("click",))
    nothing = KeyedJaggedTensor([], torch.zeros(0, dtype=torch.int32), lengths=torch.zeros(0, dtype=torch.int32))
    batch = Batch(nothing, None, torch.randn(3, 5), None, torch.arange(3))
    assert make_ranker(numbers, tower=MOE)(batch).shape == (3, 1)
    with pytest.raises(UserError, match="needs at least one feature"):
        make_ranker(Schema(tables=(), sparse=(), dense=(), tasks=("click",)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context": ["nobody"], "tower": MOE}, r"model\.context: there is no feature 'nobody'"),
        ({"context": ["user"], "tower": MLP}, r"only routers read model\.context"),
        ({"tables": {"user": {"dim": 4}}, "interaction": {"kind": "fm"}}, "give all tables the same dim"),
        ({"tasks": {"kind": "mmoe"}, "tower": MLP}, r"set model\.tower\.kind to 'moe'"),
        ({"tasks": {"kind": "ple"}, "tower": {"kind": "moe", "experts": 2}}, r"model\.tower\.experts: 'ple' divides 2"),
    ],
)
def test_settings_that_do_not_fit_the_schema_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        make_ranker(**settings)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"tower": {"kind": "moe", "experts": 2, "top_k": 3}}, "top_k"),
        ({"dim": 0}, "dim"),
        ({"tower": {"kind": "mlp", "hidden": [0]}}, "hidden"),
        ({"tower": {"kind": "moe", "dropout": 1.0}}, "dropout"),
        ({"interaction": {"kind": "crosss"}}, "interaction"),
        ({"towr": {}}, "towr"),
    ],
)
def test_bad_values_name_their_key(settings, key):
    with pytest.raises(ValidationError, match=key):
        RankerConfig.model_validate(settings)
