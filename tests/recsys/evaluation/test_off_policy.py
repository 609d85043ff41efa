"""Off-policy evaluation over the actions of a log: contexts stay, actions are exchanged."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import Notice, UserError
from models.layers.losses import LossConfig
from recsys.cli import app
from recsys.config.experiment import ExperimentConfig
from recsys.config.off_policy import OffPolicyConfig
from recsys.evaluation.off_policy import (
    OffPolicyResult,
    PolicyValue,
    evaluate_off_policy,
    policy_chances,
    warn_of_doubts,
)
from recsys.metrics.arrays import Floats
from recsys.training.train import train

RATE = np.array([[0.2, 0.6, 0.4], [0.7, 0.1, 0.4]])
"""The chance of a click, by country and item: the best policy shows item b in country x, item a in country y."""
Made = tuple[Path, Dataset, ExperimentConfig]


def log(rows: int = 6000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    country, explores = rng.integers(0, 2, rows), rng.random(rows) < 0.6
    item = np.where(explores, rng.integers(0, 3, rows), 2)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 500, rows),
            "time": 1_700_000_000 + np.arange(rows),
            "country": np.array(["x", "y"])[country],
            "item": np.array(["a", "b", "c"])[item],
            "price": np.array([3.0, 5.0, 4.0])[item],
            "chance": np.where(item == 2, 0.6, 0.2),
            "click": (rng.random(rows) < RATE[country, item]).astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("bandit")
    log().write_parquet(folder / "log.parquet")
    pl.DataFrame({"item": ["a", "b", "c"], "color": ["red", "blue", "green"]}).write_parquet(folder / "items.parquet")
    config = ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(folder / "log.parquet"),
                "joins": [{"table": str(folder / "items.parquet"), "on": "item"}],
                "time": "time",
                "user": "user",
                "tasks": {"click": {"column": "click"}},
                "split": {"by": "time", "valid": 0.1, "test": 0.4},
                "features": {
                    "color_in_country": {"kind": "cross", "of": ["color", "country"]},
                    "color": {"kind": "id"},
                    "country": {"kind": "id"},
                    "price": {"kind": "number"},
                    "seen": {"kind": "statistic", "measure": "count", "by": ["item"]},
                },
            },
            "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [8]}},
            "train": {
                "epochs": 3,
                "batch_size": 128,
                "features": ["color_in_country", "color", "country"],
                "tables": {"learning_rate": 0.1},
                "dense": {"learning_rate": 0.01},
            },
            "off_policy": {"propensity": "chance", "action": "item"},
        }
    )
    dataset = prepare(config.data, folder / "dataset")
    train(config, dataset, folder / "run")
    return folder / "run", dataset, config


def evaluated(made: Made, **keys: object) -> OffPolicyResult:
    run, dataset, config = made
    assert config.off_policy is not None
    asked = OffPolicyConfig.model_validate(config.off_policy.model_dump() | keys)
    return evaluate_off_policy(run, dataset, config.model_copy(update={"off_policy": asked}))


def test_the_value_of_the_greedy_policy_is_covered(made: Made) -> None:
    found = evaluated(made)
    assert found.rows == 2400
    for name, value in found.estimates.items():
        assert value.low < 0.65 < value.high or name == "dm", name
        assert value.change_low > 0.1, name
    # the interval of the direct method does not hold the errors of the model
    assert found.estimates["dm"].value == pytest.approx(0.65, abs=0.08)
    assert found.mean_weight == pytest.approx(1, abs=0.15)
    assert found.largest_weight == pytest.approx(5)
    assert "change +" in found.lines()["dr"]


def test_the_command_takes_keys_of_the_policy_alone(made: Made) -> None:
    asked = ["evaluate", str(made[0]), "off_policy.policy=uniform", "--off-policy", "--no-baselines", "--json"]
    result = CliRunner().invoke(app, asked)
    found = json.loads(result.stdout.splitlines()[-1])["off_policy"]
    assert found["policy"] == "uniform"
    assert found["estimates"].keys() == {"dm", "ips", "snips", "dr"}
    without = CliRunner().invoke(app, [*asked[:3], "--no-baselines"])
    assert "'off_policy.policy=uniform' is for --off-policy" in str(without.exception)
    other = CliRunner().invoke(app, [*asked[:2], "train.epochs=2", "--off-policy"])
    assert "'train.epochs=2' would need another training" in str(other.exception)


def test_the_value_of_the_uniform_policy_is_estimated(made: Made) -> None:
    found = evaluated(made, policy="uniform")
    assert found.support == 1
    for name, value in found.estimates.items():
        assert value.value == pytest.approx(RATE.mean(), abs=0.04), name


def test_clipping_bounds_the_weights(made: Made) -> None:
    with pytest.warns(Notice, match="the mean weight is .* and should be about 1"):
        assert evaluated(made, clip=0.5).largest_weight == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"support": 0.0}, "the policy would have chosen none of the logged actions"),
        ({"effective_rows": 12.0}, "tell as much as 12 rows of equal weight: do not trust ips"),
        ({"largest_weight": 900.0}, "one row has 90% of all weight"),
        ({"rewarded": 40}, "only 40 rows have a reward other than 0"),
        ({"mean_weight": 0.5}, r"the mean weight is 0\.5 and should be about 1"),
    ],
)
def test_what_makes_estimates_doubtful_is_told(changes: dict[str, float], said: str) -> None:
    sound = {"support": 1.0, "effective_rows": 500.0, "mean_weight": 1.0, "largest_weight": 5.0, "rewarded": 300}
    zero = PolicyValue(value=0, low=0, high=0, change=0, change_low=0, change_high=0)
    measured = sound | changes | {"policy": "greedy", "rows": 1000, "logged": zero, "estimates": {}}
    result = OffPolicyResult.model_validate(measured)
    with pytest.warns(Notice, match=said):
        warn_of_doubts(result)


def test_an_order_without_probabilities_has_no_direct_method(made: Made) -> None:
    run, dataset, config = made
    train_block = config.train.model_copy(update={"loss": LossConfig.parse({"kind": "softmax"})})
    config = config.model_copy(update={"train": train_block})
    with pytest.warns(Notice, match="softmax learns no probabilities: dm and dr are left out"):
        assert evaluate_off_policy(run, dataset, config).estimates.keys() == {"ips", "snips"}


def test_a_column_that_goes_with_the_action_is_named(made: Made, tmp_path: Path) -> None:
    _, dataset, config = made
    features = config.train.model_copy(update={"features": ["price", "country"], "epochs": 1})
    config = config.model_copy(update={"train": features})
    train(config, dataset, tmp_path / "run")
    with pytest.warns(Notice, match=r"price has one value for each item.*off_policy\.action=\['item', 'price'\]"):
        kept = evaluated((tmp_path / "run", dataset, config))
    named = evaluated((tmp_path / "run", dataset, config), action=["item", "price"])
    assert named.support < kept.support  # where no column is exchanged, all actions look alike


def test_the_past_of_actions_that_were_not_taken_is_refused(made: Made, tmp_path: Path) -> None:
    _, dataset, config = made
    config = config.model_copy(update={"train": config.train.model_copy(update={"features": ["seen"], "epochs": 1})})
    train(config, dataset, tmp_path / "run")
    with pytest.raises(UserError, match=r"feature 'seen' reads the past or the list of 'item'"):
        evaluated((tmp_path / "run", dataset, config))


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (["sku"], r"off_policy\.action names the column 'sku', which the log does not have"),
        (["item", "country"], r"'country' has several values for item '[abc]'"),
    ],
)
def test_actions_that_cannot_be_used_are_refused(made: Made, action: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluated(made, action=action)


def test_policies_make_chances_of_scores() -> None:
    scores = np.array([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])

    def chances(**keys: object) -> Floats:
        return policy_chances(scores, OffPolicyConfig.model_validate({"propensity": "p", "action": "a"} | keys))

    np.testing.assert_allclose(chances(), np.array([[0, 0.5, 0.5], [1, 0, 0]]))
    np.testing.assert_allclose(chances(policy="uniform"), np.full((2, 3), 1 / 3))
    soft = chances(policy="softmax", temperature=2)
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    assert soft[1, 0] / soft[1, 1] == pytest.approx(np.exp(0.5))


@pytest.mark.parametrize("keys", [{}, {"action": "item", "position": "place"}])
def test_either_actions_or_places_are_named(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"set either `action`.*or `position`"):
        OffPolicyConfig.model_validate({"propensity": "p"} | keys)
