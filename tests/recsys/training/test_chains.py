"""A task that happens only after another one, and a score, from the log to the answers of artifacts."""

import json
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
from serving.batch.score import score
from serving.batch.scorer import Scorer
from serving.portable.scorer import PortableScorer
from serving.portable.write import write_portable

ITEMS = 8


def log() -> pl.DataFrame:
    """Items that are clicked often are bought often by those who click: clicked rows are a biased sample."""
    rng = np.random.default_rng(0)
    rows = 3000
    item = rng.integers(0, ITEMS, rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-(item - 5.0)))
    buy = click & (rng.random(rows) < 1 / (1 + np.exp(-(item - 5.0))))
    return pl.DataFrame(
        {"item": item, "user": np.arange(rows) % 50, "click": click.astype(int), "buy": buy.astype(int)}
    )


def config(path: Path, buy: dict[str, Any], **more: Any) -> ExperimentConfig:
    data = {
        "log": str(path),
        "tasks": {"buy": {"column": "buy"} | buy, "click": {"column": "click"}},
        "keys": ["user", "item"],
        "features": {"item": {"kind": "id"}},
        "split": {"by": "random", "test": 0.3},
    }
    model = {"dim": 4, "wide": True, "tower": {"kind": "mlp", "hidden": []}, "tasks": {"weights": "uncertainty"}}
    return ExperimentConfig.model_validate(
        {"data": data, "model": model, "train": {"epochs": 3, "batch_size": 128, "patience": 9}} | more
    )


Made = tuple[ExperimentConfig, Dataset, Path, Evaluation]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("chains")
    log().write_parquet(folder / "log.parquet")
    training = {"epochs": 3, "batch_size": 128, "patience": 9, "monitor": {"score/click/auc": 1}}
    chained = config(folder / "log.parquet", {"after": "click"}, score="buy * 20 + click", train=training)
    dataset = prepare(chained.data, folder / "dataset")
    train(chained, dataset, folder / "run")
    return chained, dataset, folder, evaluate(folder / "run", dataset, "test", draws=20)


def logloss(logits_N: np.ndarray, labels_N: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits_N) - labels_N * logits_N))


def test_it_is_better_over_all_rows_than_a_head_of_clicked_rows(made: Made) -> None:
    _, dataset, folder, evaluation = made
    alone = config(folder / "log.parquet", {"where": "click = 1"})
    clicked = prepare(alone.data, folder / "clicked")
    train(alone, clicked, folder / "alone")
    found = evaluate(folder / "alone", clicked, "test", draws=0).predictions
    bought_N = dataset.labels("test")[:, 0]
    assert not np.isnan(bought_N).any()
    chained = logloss(evaluation.predictions["buy:logit"].to_numpy(), bought_N)
    assert chained == pytest.approx(evaluation.tasks["buy"]["logloss"], rel=1e-5)
    assert chained < logloss(found["buy:logit"].to_numpy(), bought_N) - 0.05


def test_weights_of_tasks_are_learned_and_logged(made: Made) -> None:
    _, _, folder, _ = made
    learned = load_weights(folder / "run").dense["task_weights.log_variance_T"]
    assert (learned < 0).all()  # both losses are below 1 / 2
    logged = pl.read_parquet(folder / "run" / "metrics.parquet").filter(pl.col("metric") == "task_weights/buy")
    assert logged["value"][-1] == pytest.approx(float((-learned[0]).exp()), rel=0.2)


def test_the_order_of_the_score_is_monitored_as_it_is_evaluated(made: Made) -> None:
    _, dataset, folder, _ = made
    result = json.loads((folder / "run" / "manifest.json").read_text())["meta"]["result"]
    expected = evaluate(folder / "run", dataset, "valid", draws=0).derived["score/click"]["auc"]
    assert result["value"] == pytest.approx(expected)
    assert result["valid"]["score/click"]["auc"] == pytest.approx(expected)
    logged = pl.read_parquet(folder / "run" / "metrics.parquet").filter(pl.col("metric") == "score/click/auc")
    assert logged["value"].max() == pytest.approx(expected)


def test_evaluation_measures_conditional_probabilities_and_the_score(made: Made) -> None:
    _, _, _, evaluation = made
    assert list(evaluation.derived) == ["buy:conditional", "score/buy", "score/click"]
    assert 0.5 < evaluation.derived["buy:conditional"]["auc"] < 1
    assert evaluation.intervals["score/buy"]["auc"].low < evaluation.derived["score/buy"]["auc"]
    assert set(evaluation.summary().tasks) == {"buy", "click", *evaluation.derived}


def test_artifacts_jobs_and_portable_artifacts_answer_the_same(made: Made) -> None:
    _, _, folder, _ = made
    artifact = export_run(folder / "run", folder / "artifact", ["export.conditional=true"])
    assert artifact.model.score == "buy * 20 + click"
    rows = log().head(200)
    found = Scorer(artifact).score(rows)
    assert found.columns == ["user", "item", "buy", "click", "buy:conditional", "score"]
    assert (found["buy"] <= found["click"]).all()
    np.testing.assert_allclose(found["buy:conditional"], found["buy"] / found["click"], rtol=1e-6)
    np.testing.assert_allclose(found["score"], found["buy"] * 20 + found["click"], rtol=1e-6)
    rows.write_parquet(folder / "rows.parquet")
    score(artifact, str(folder / "rows.parquet"), folder / "scores")
    assert pl.read_parquet(folder / "scores" / "*.parquet").equals(found)
    write_portable(artifact, folder / "portable")
    answers = pl.DataFrame(PortableScorer(folder / "portable").score(rows.to_dicts()))
    np.testing.assert_allclose(answers["score"], found["score"], rtol=1e-4)
    items = pl.DataFrame({"item": np.arange(ITEMS)})
    best = PairScorer(Scorer(artifact), items).top_k(pl.DataFrame({"user": [1]}), 3)
    assert best.columns == ["user", "item", "rank", "score"]
    everyone = Scorer(artifact).score(items.with_columns(user=pl.lit(1))).sort("score", descending=True)
    assert best["item"].to_list() == everyone["item"].head(3).to_list()


def test_a_score_that_is_not_finite_is_the_fault_of_its_formula(made: Made) -> None:
    _, _, folder, _ = made
    export_run(folder / "run", folder / "infinite", ["score=log(click - click)"])
    with pytest.raises(UserError, match=r"score 'log\(click - click\)' is NaN or infinite for 5 of 5 rows"):
        Scorer(Artifact.open(folder / "infinite")).score(log().head(5))


def test_formulas_are_checked_where_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score: 'klick' reads 'klick', which is not a task: did you mean 'click'"):
        config(tmp_path, {}, score="klick")
