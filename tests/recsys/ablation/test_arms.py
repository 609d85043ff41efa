"""What a study plans and what it refuses before the first trial."""

from typing import Any

import pytest

from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from models.layers.losses import CalibratedConfig
from recsys.ablation import selection
from recsys.ablation.arms import BASE, CORE, narrow, plan_arms
from recsys.config.experiment import ExperimentConfig
from recsys.config.study import Part, StudyConfig
from recsys.config.validation import parse_config


@pytest.fixture
def data() -> DataConfig:
    ids = {name: {"kind": "id"} for name in ("user", "item", "genre")}
    likes = {"kind": "history", "of": ["item", "genre"], "entity": "user"}
    return DataConfig.model_validate(
        {
            "log": "log.parquet",
            "time": "time",
            "user": "user",
            "tasks": {"click": {"column": "click"}},
            "features": {**ids, "likes": likes, "price": {"kind": "number"}},
            "groups": {"ids": ["user", "item"], "everything": ["user", "item", "genre", "likes", "price"]},
        }
    )


def _plan(data: DataConfig, **study: Any):
    return plan_arms(StudyConfig(**{"leave_one_out": [], **study}), data, list(data.inputs))


def test_the_base_comes_first_and_every_arm_names_its_reference(data: DataConfig) -> None:
    arms = _plan(data, leave_one_out=["features"], core=["user"], add_one_in=["item", "ids"], mask=["price"])
    assert arms[0].name == BASE
    assert {arm.reference for arm in arms} <= {arm.name for arm in arms}
    by_name = {arm.name: arm for arm in arms}
    assert by_name["without item"].features == ("user", "genre", "likes", "price")
    assert by_name["core + ids"].features == ("user", "item")
    assert by_name["core + item"].reference == CORE
    assert not by_name["mask price"].trains


def test_a_base_of_fewer_features_has_fewer_arms(data: DataConfig) -> None:
    arms = plan_arms(StudyConfig(leave_one_out=["features", "ids"]), data, ["user", "price"])
    assert [arm.name for arm in arms] == [BASE, "without user", "without price", "without ids"]


def test_pairs_bring_the_arms_that_their_interaction_needs(data: DataConfig) -> None:
    arms = {arm.name: arm for arm in _plan(data, pairs=["item", "genre", "price"])}
    assert {name for name, arm in arms.items() if arm.kind == "pair"} == {
        "without item, genre",
        "without item, price",
        "without genre, price",
    }
    assert {"without item", "without genre", "without price"} <= arms.keys()


def test_pairs_of_overlapping_units_are_left_out(data: DataConfig) -> None:
    arms = _plan(data, pairs=["ids", "item", "price"])
    assert [arm.units for arm in arms if arm.kind == "pair"] == [("ids", "price"), ("item", "price")]


def test_a_variant_takes_the_place_of_its_feature(data: DataConfig) -> None:
    study = StudyConfig(leave_one_out=[], replace={"user": ["likes"], "ids": ["price"]})
    arms = {arm.name: arm for arm in plan_arms(study, data, ["user", "item", "genre"])}
    assert arms["likes for user"].features == ("item", "genre", "likes")
    assert arms["price for ids"].features == ("genre", "price")
    for key, variant in (("user", "colour"), ("user", "item"), ("colour", "likes")):
        with pytest.raises(UserError, match=r"colour|item"):
            plan_arms(StudyConfig(leave_one_out=[], replace={key: [variant]}), data, ["user", "item"])


def test_keys_vary_one_at_a_time_and_in_a_grid(data: DataConfig) -> None:
    arms = _plan(
        data,
        vary={"model.dim": [4, 8], "train.epochs": [1]},
        grid={"model.tower.experts": [1, 2], "model.tower.top_k": [1, 2]},
    )
    assert [arm.name for arm in arms if arm.kind == "vary"] == ["dim = 4", "dim = 8", "epochs = 1"]
    assert [dict(arm.overrides) for arm in arms if arm.kind == "grid"][1] == {
        "model.tower.experts": 1,
        "model.tower.top_k": 2,
    }


def test_each_expert_of_each_block_is_left_out(data: DataConfig) -> None:
    study = StudyConfig(leave_one_out=[], leave_out_experts=True)
    one = plan_arms(study, data, ["user"], experts=[2])
    assert [arm.name for arm in one] == [BASE, "without expert 1 by load", "without expert 2 by load"]
    assert [arm.units for arm in plan_arms(study, data, ["user"], experts=[2, 2])][1:] == [
        ("0/0",),
        ("0/1",),
        ("1/0",),
        ("1/1",),
    ]
    for experts in ([], [1]):
        with pytest.raises(UserError, match="at least two experts"):
            plan_arms(study, data, ["user"], experts=experts)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"leave_one_out": ["colour"]}, "`colour`, which is neither a feature nor a group"),
        ({"mask": ["colour"]}, "ablation.mask names `colour`"),
        ({"leave_one_out": ["everything"]}, "without everything no feature is left"),
        ({"pairs": ["user"]}, "names only `user`"),
    ],
)
def test_bad_arms_are_refused(data: DataConfig, study: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _plan(data, **study)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"add_one_in": ["user"]}, "needs `core`"),
        ({"metrics": ["auc", "ndgc@10"]}, "ndgc@10"),
        ({"metrics": []}, "ablation.metrics"),
        ({"vary": {"data.split.valid": [0.1]}}, "cannot be varied"),
        ({"vary": {"model.dim": []}}, "no values"),
        ({"slices": {"new": {"column": "user"}}}, "seen_at_least"),
        ({"seeds": 0}, "ablation.seeds"),
        ({"correction": "none"}, "ablation.correction"),
    ],
)
def test_bad_settings_are_refused_with_the_key(data: DataConfig, study: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_config(ExperimentConfig, {"data": data.model_dump(mode="json"), "ablation": study}, source="x.yaml")


def test_a_narrowed_config_says_nothing_of_features_that_are_gone(data: DataConfig) -> None:
    model = {"context": ["user", "price"], "pooling": {"likes": "attention"}, "tables": {"item": {"dim": 8}}}
    sparsity = {
        "quantization": {"table_bits": {"item": 4, "genre": 8}},
        "row_pruning": {"sparsity": 0.5, "tables": ["item"]},
        "post_pruning": {"sparsity": 0.5},
    }
    train = {"unknown": {"user": 0.1, "likes.item": 0.1, "genre": 0.1}}
    blocks = {"data": data.model_dump(mode="json"), "model": model, "sparsity": sparsity, "train": train}
    config = parse_config(ExperimentConfig, blocks, source="x.yaml")
    content = narrow(config.model_dump(mode="json"), ["price", "genre"], ["genre"])
    assert content["model"]["context"] == ["price"]
    assert content["model"]["pooling"] == content["model"]["tables"] == {}
    assert content["train"]["unknown"] == {"genre": 0.1}
    assert content["sparsity"]["quantization"]["table_bits"] == {"genre": 8}
    assert content["sparsity"]["row_pruning"] is None  # of no table it would prune all
    assert content["sparsity"]["post_pruning"]["sparsity"] == 0.5
    assert narrow(config.model_dump(mode="json"), list(data.features), ["item"])["model"]["tables"]["item"]["dim"] == 8


WORTH = {"a": 0.10, "b": 0.05, "c": 0.02, "d": 0.0, "e": -0.01}


def _scores(sets: list[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    return {features: 0.5 + sum(WORTH[feature] for feature in features) for features in sets}


def _search(strategy: selection.Search) -> dict[tuple[str, ...], float]:
    """Answer a strategy with the additive truth ``WORTH`` until it is done; all that it tried."""
    tried: dict[tuple[str, ...], float] = {}
    wanted = next(strategy)
    while True:
        scores = _scores(wanted)
        tried |= scores
        try:
            wanted = strategy.send(scores)
        except StopIteration:
            return tried


@pytest.mark.parametrize(
    "strategy",
    [
        selection.forward(tuple(WORTH), ("a",), tolerance=0.005),
        selection.backward(tuple(WORTH), tolerance=0.005),
        selection.path(tuple(WORTH), tolerance=0.005),
    ],
    ids=["forward", "backward", "path"],
)
def test_every_strategy_finds_the_features_that_are_worth_it(strategy: selection.Search) -> None:
    assert selection.smallest_within(_search(strategy), 0.005) == ("a", "b", "c")


def test_the_path_takes_fewest_trainings() -> None:
    path = _search(selection.path(tuple(WORTH), tolerance=0.005))
    backward = _search(selection.backward(tuple(WORTH), tolerance=0.005))
    assert len(path) < len(backward)


@pytest.fixture
def lists() -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": "log.parquet",
            "group": ["query"],
            "weight": "weight",
            "tasks": {"click": {"column": "click"}},
            "split": {"by": "random"},
            "features": {
                "item": {"kind": "id"},
                "price": {"kind": "relative", "measures": ["rank"]},
                "position": {"kind": "id", "serve": 1},
            },
        }
    )


def test_the_loss_lists_positions_and_weights_can_be_left_out(lists: DataConfig) -> None:
    study = StudyConfig(leave_one_out=["features"], without=["loss", "group", "position", "weight"])
    arms = {arm.name: arm for arm in plan_arms(study, lists, list(lists.inputs), loss=CalibratedConfig())}
    pointwise = {"train.loss": {"kind": "pointwise"}}
    assert {name: (arm.features, dict(arm.overrides)) for name, arm in arms.items() if arm.kind == "without"} == {
        "without train.loss": (("item", "price", "position"), pointwise),
        "without data.group": (("item", "position"), pointwise),
        "without positions": (("item", "price"), {}),
        "without data.weight": (("item", "price", "position"), {"train.weights": False}),
    }


@pytest.mark.parametrize(
    ("part", "gone", "sentence"),
    [
        ("loss", [], "train.loss is pointwise already"),
        ("group", ["price"], "training uses no lists"),
        ("group", ["price", "group"], "data.group is not set"),
        ("position", ["position"], "no feature has `serve`"),
        ("weight", ["weight"], "neither data.weight nor the row_weight of a task is set"),
    ],
)
def test_what_is_not_there_cannot_be_left_out(lists: DataConfig, part: Part, gone: list[str], sentence: str) -> None:
    features = {name: feature for name, feature in lists.features.items() if name not in gone}
    left = lists.model_copy(update={"features": features} | {key: None for key in gone if key not in lists.features})
    with pytest.raises(UserError, match=f"ablation.without names `{part}`, and {sentence}"):
        plan_arms(StudyConfig(leave_one_out=[], without=[part]), left, list(features))
