"""Labels of ordered levels, from the log to the answers of artifacts."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import Evaluation, evaluate
from recsys.exporting.export import export_run
from recsys.runs.checkpoints import load_weights
from recsys.training.train import train
from serving.artifact.artifact import Artifact
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer
from serving.portable.scorer import PortableScorer
from serving.portable.write import write_portable

ITEMS, ROWS = 6, 4000
SECONDS = np.array([0.0, 10.0, 30.0, 120.0])
"""The level of a row is planted; it watches somewhat longer."""


def planted(item: np.ndarray) -> np.ndarray:
    """(N, K) the chance of each level, by a proportional odds model."""
    above = 1 / (1 + np.exp(-(item[:, None] - 2.5 - np.array([-1.0, 0.5, 2.0]))))
    return np.hstack([1 - above[:, :1], above[:, :-1] - above[:, 1:], above[:, -1:]])


def log() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    item = rng.integers(0, ITEMS, ROWS)
    level = (rng.random((ROWS, 1)) > planted(item).cumsum(1)).sum(1)
    seconds = SECONDS[level] + rng.random(ROWS) * 5
    return pl.DataFrame({"item": item, "user": np.arange(ROWS) % 50, "seconds": seconds, "click": item % 2})


def config(path: Path, watched: dict[str, Any], **more: Any) -> ExperimentConfig:
    data = {
        "log": str(path),
        "tasks": {
            "watched": {"column": "seconds", "kind": "ordinal", "levels": SECONDS.tolist()} | watched,
            "click": {"column": "click"},
        },
        "keys": ["user", "item"],
        "features": {"item": {"kind": "id"}},
        "split": {"by": "random", "test": 0.3},
    }
    model = {"dim": 4, "wide": True, "tower": {"kind": "mlp", "hidden": []}}
    training = {"epochs": 4, "batch_size": 128, "patience": 9, "ema": 0.9, "dense": {"learning_rate": 0.02}}
    return ExperimentConfig.model_validate({"data": data, "model": model, "train": training} | more)


Made = tuple[Dataset, Path, Evaluation]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ordinal")
    log().write_parquet(folder / "log.parquet")
    experiment = config(folder / "log.parquet", {}, score="click * watched")
    dataset = prepare(experiment.data, folder / "dataset")
    train(experiment, dataset, folder / "run")
    export_run(folder / "run", folder / "artifact")
    return dataset, folder, evaluate(folder / "run", dataset, "test", draws=20)


def test_labels_are_the_highest_level_that_is_not_above_the_value(made: Made) -> None:
    labels_N = made[0].labels("test")[:, 0]
    assert set(labels_N.tolist()) == set(SECONDS.tolist())


def test_the_expected_level_is_that_of_the_planted_probabilities(made: Made) -> None:
    dataset, _, evaluation = made
    predictions = evaluation.predictions
    truth_N = planted(predictions["item"].cast(pl.Int64).to_numpy()) @ SECONDS
    assert np.abs(predictions["watched:logit"].to_numpy() - truth_N).max() < 8
    noise = float(np.sqrt(np.mean((dataset.labels("test")[:, 0] - truth_N) ** 2)))
    assert noise * 0.95 < evaluation.tasks["watched"]["rmse"] < noise * 1.05
    assert "rmse" in evaluation.intervals["watched"]


def test_run_artifact_pairs_and_portable_artifact_give_the_same_level(made: Made) -> None:
    _, folder, evaluation = made
    rows = log().select("item", "user").unique("item").sort("item")
    artifact = Artifact.open(folder / "artifact")
    scored = Scorer(artifact).score(rows, logits=True)
    by_item = evaluation.predictions.unique("item").sort("item")
    np.testing.assert_allclose(scored["watched"], by_item["watched:logit"], rtol=0.02)  # int8 tables
    np.testing.assert_array_equal(scored["watched"], scored["watched:logit"])
    write_portable(artifact, folder / "portable")
    portable = PortableScorer(folder / "portable").score(rows.to_dicts())
    np.testing.assert_allclose([row["watched"] for row in portable], scored["watched"], rtol=1e-5)
    np.testing.assert_allclose([row["score"] for row in portable], scored["score"], rtol=1e-4)
    pairs = PairScorer(Scorer(artifact), rows.select("item"))
    [(_, logits_UCT)] = list(pairs.score(rows.select("user").head(1)))
    np.testing.assert_allclose(logits_UCT[0, :, 0], scored["watched"], rtol=1e-5)


def test_thresholds_are_learned_and_averaged(made: Made) -> None:
    weights = load_weights(made[1] / "run")
    ordinal = weights.to_ranker().ordinal
    assert ordinal is not None
    found = ordinal.parts[0].thresholds().detach().numpy()
    np.testing.assert_allclose(np.diff(found), [1.5, 1.5], atol=0.5)


def test_rows_below_the_first_level_are_refused_and_counted(tmp_path: Path) -> None:
    log().with_columns(pl.col("seconds") - 1).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match="below 0, the first of the levels of task 'watched'"):
        prepare(config(tmp_path / "log.parquet", {}).data, tmp_path / "dataset")


@pytest.mark.parametrize(
    ("watched", "said"),
    [
        ({"levels": []}, "needs levels, at least three numbers"),
        ({"levels": [0, 1]}, "two levels are a binary task: use at_least"),
        ({"levels": [5, 3, 4]}, "in ascending order, and are 5, 3, 4"),
        ({"levels": [0, 1, float("nan")]}, "finite numbers in ascending order"),
        ({"at_least": 3}, "at_least makes a binary label"),
        ({"kind": "count"}, "levels are for kind: ordinal, not for kind: count"),
        ({"after": "click"}, "task `watched` is of kind ordinal"),
    ],
)
def test_tasks_that_are_no_ordered_levels_are_one_sentence(watched: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(Path("log.parquet"), watched)


def test_a_linear_start_is_refused(made: Made, tmp_path: Path) -> None:
    _, folder, _ = made
    experiment = config(folder / "log.parquet", {})
    alone = experiment.data.model_copy(update={"tasks": {"watched": experiment.data.tasks["watched"]}})
    started = experiment.train.model_copy(update={"start": "linear"})
    dataset = prepare(alone, tmp_path / "dataset")
    with pytest.raises(UserError, match=r"train\.start: linear fits no task of kind ordinal"):
        train(experiment.model_copy(update={"data": alone, "train": started}), dataset, tmp_path / "run")
