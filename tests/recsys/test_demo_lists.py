"""``recsys demo --lists``: a model with positions recovers what was planted, one without does not."""

from pathlib import Path

import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.demo_lists import ListsDemoResult, run_lists_demo
from recsys.evaluation.off_policy import OffPolicyResult, evaluate_off_policy

Demo = tuple[Path, ListsDemoResult]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("lists") / "demo"
    return out, run_lists_demo(out, rows=10_000, seed=0, announce=lambda step, seconds: None)


def off_policy(folder: Path, **keys: object) -> OffPolicyResult:
    config = load_config(folder / "config.yaml", [f"off_policy.{key}={value}" for key, value in keys.items()])
    return evaluate_off_policy(folder / "run", Dataset.open(folder / "dataset", verify="sizes"), config)


def test_a_model_that_knows_positions_orders_better_by_the_true_relevance(demo: Demo) -> None:
    assert demo[1].pairs_right > demo[1].pairs_right_without_positions + 0.02
    assert demo[1].policy_value > demo[1].logged_value


def test_the_planted_effect_of_positions_is_inside_the_measured_intervals(demo: Demo) -> None:
    assert demo[1].positions_covered == 1
    added = pl.read_parquet(demo[0] / "run" / "added.parquet")
    learned = added.sort("value")["logit"].to_list()
    assert learned == pytest.approx([0, -0.69, -1.10, -1.39, -1.61], abs=0.25)
    assert "click, measured" in demo[1].report.read_text()


def test_estimates_cover_the_true_value_of_the_order(demo: Demo) -> None:
    for name in ("ips", "snips", "dr"):
        found = demo[1].estimates[name]
        assert found.low < demo[1].policy_value < found.high, name


def test_uniform_and_hot_softmax_are_one_policy(demo: Demo) -> None:
    uniform, softmax = off_policy(demo[0], policy="uniform"), off_policy(demo[0], policy="softmax", temperature=1e6)
    assert uniform.support == 1
    for name, found in uniform.estimates.items():
        assert softmax.estimates[name].value == pytest.approx(found.value, abs=0.02), name


def test_cold_softmax_is_greedy(demo: Demo) -> None:
    greedy, softmax = off_policy(demo[0]), off_policy(demo[0], policy="softmax", temperature=1e-6)
    for name, found in greedy.estimates.items():
        assert softmax.estimates[name].value == pytest.approx(found.value, abs=0.005), name


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"propensity": "chance"}, r"off_policy\.propensity names the column 'chance', which the log does not have"),
        ({"propensity": "price"}, r"rows have no price above 0 and at most 1; the first of them has [\d.]+"),
        ({"propensity": "clicked"}, r"rows have no clicked above 0 and at most 1; the first of them has 0"),
        ({"position": "genre"}, r"'genre' has a missing value, or one that is not a number"),
        ({"position": "timestamp"}, "two rows of one list have timestamp"),
        ({"task": "buy"}, r"off_policy\.task is 'buy': the tasks are click"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(demo: Demo, keys: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        off_policy(demo[0], **keys)


def test_a_run_without_the_block_is_refused(demo: Demo) -> None:
    config = load_config(demo[0] / "config.yaml", ["off_policy=null"])
    with pytest.raises(UserError, match="has no block `off_policy`: add"):
        evaluate_off_policy(demo[0] / "run", Dataset.open(demo[0] / "dataset", verify="sizes"), config)


def test_places_need_lists(demo: Demo) -> None:
    content = load_config(demo[0] / "config.yaml").model_dump()
    content["data"] |= {"group": None, "features": {"item": {"kind": "id"}}}
    with pytest.raises(ValueError, match=r"off_policy\.position needs lists: set data\.group"):
        ExperimentConfig.model_validate(content)
