"""A feature that is learned as a term of its own in training and fixed when serving."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.added import ADDED_FILE
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.reports.report import write_report
from recsys.training.train import train
from serving.artifact.drift import DriftMonitor
from serving.batch.pairs import PairScorer
from serving.batch.scorer import Scorer

TRUTH = {1: 0.0, 2: -1.0, 3: -2.0}
"""What each position adds to the logit."""


def config(folder: Path, position: dict[str, Any]) -> ExperimentConfig:
    """Good items stand first, as a ranker of before has put them."""
    rng = np.random.default_rng(0)
    rows = 6000
    item = rng.integers(0, 12, rows)
    good = (item - 5.5) / 4
    position_of = np.clip(np.round(2 - 0.7 * good + rng.normal(0, 0.8, rows)), 1, 3).astype(int)
    logit = good - 0.5 + np.array([TRUTH[place] for place in position_of])
    frame = pl.DataFrame({"item": item, "position": position_of, "click": rng.random(rows) < 1 / (1 + np.exp(-logit))})
    frame.with_columns(pl.col("click").cast(pl.Int8)).write_parquet(folder / "log.parquet")
    data = {
        "log": str(folder / "log.parquet"),
        "tasks": {"click": {"column": "click"}},
        "keys": ["item"],
        "features": {"item": {"kind": "id"}, "position": position},
    }
    learning = {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}}
    model = {"dim": 4, "tower": {"kind": "mlp", "hidden": [8]}}
    return ExperimentConfig.model_validate(
        {"data": data, "model": model, "train": {"epochs": 6, "batch_size": 256} | learning}
    )


def test_what_positions_add_is_learned_apart_and_scores_do_not_read_them(tmp_path: Path) -> None:
    experiment = config(tmp_path, {"kind": "id", "serve": 1})
    dataset = prepare(experiment.data, tmp_path / "dataset")
    train(experiment, dataset, tmp_path / "run")
    evaluate(tmp_path / "run", dataset, "test", draws=0)
    added = pl.read_parquet(tmp_path / "run" / ADDED_FILE)
    curve = dict(zip(added["value"].cast(pl.Int64), added["logit"], strict=True))
    assert curve == pytest.approx(TRUTH, abs=0.35)
    scorer = Scorer(export_run(tmp_path / "run", tmp_path / "artifact"))
    items = pl.DataFrame({"item": list(range(12))})
    alone = scorer.score(items, logits=True)
    asked = scorer.score(items.with_columns(position=pl.lit(3)), logits=True)
    assert alone["click:logit"].to_list() == asked["click:logit"].to_list()
    assert scorer.artifact.reference is not None
    drift = DriftMonitor(scorer.artifact.encoder.schema, scorer.artifact.reference)
    everyone = pl.read_parquet(tmp_path / "log.parquet").select("item")
    scorer.score(everyone, drift=drift)
    assert max(*drift.feature_psi().values(), *drift.score_psi().values()) < 0.1
    truth = (np.arange(12) - 5.5) / 4 - 0.5
    assert np.abs(alone["click:logit"].to_numpy() - truth).mean() < 0.35
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "Logit added by position" in page


def test_rows_may_bring_their_own_value_where_it_is_allowed(tmp_path: Path) -> None:
    experiment = config(tmp_path, {"kind": "id", "serve": 1, "override": True})
    settings = experiment.train.model_copy(update={"epochs": 1, "batch_size": 1024})
    experiment = experiment.model_copy(update={"train": settings})
    dataset = prepare(experiment.data, tmp_path / "dataset")
    train(experiment, dataset, tmp_path / "run")
    evaluate(tmp_path / "run", dataset, "test", draws=0)
    added = dict(pl.read_parquet(tmp_path / "run" / ADDED_FILE).select("value", "logit").iter_rows())
    scorer = Scorer(export_run(tmp_path / "run", tmp_path / "artifact"))

    def logits(rows: pl.DataFrame) -> np.ndarray:
        return scorer.score(scorer.read(rows.lazy()).collect(), logits=True)["click:logit"].to_numpy()

    items = pl.DataFrame({"item": list(range(12))})
    placed = items.with_columns(position=pl.Series([3, 2] + [None] * 10))
    own = np.array([added["3"], added["2"]] + [0.0] * 10)
    np.testing.assert_allclose(logits(placed) - logits(items), own, atol=2e-3)
    _, pairs = next(PairScorer(scorer, placed).score(pl.DataFrame({"user": [7]})))
    np.testing.assert_allclose(pairs[0, :, 0], logits(placed), atol=2e-3)


def test_an_override_needs_a_value_to_serve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`override` needs the key `serve`, whose value it overrides"):
        config(tmp_path, {"kind": "id", "override": True})


def test_a_served_value_that_training_never_saw_is_refused(tmp_path: Path) -> None:
    experiment = config(tmp_path, {"kind": "id", "serve": 9})
    with pytest.raises(UserError, match="serves the value 9, which no training row has often enough"):
        prepare(experiment.data, tmp_path / "dataset")


def test_what_is_fixed_when_serving_is_no_part_of_other_features(tmp_path: Path) -> None:
    experiment = config(tmp_path, {"kind": "id", "serve": 1}).model_dump()
    experiment["data"]["features"]["both"] = {"kind": "cross", "of": ["item", "position"]}
    with pytest.raises(ValueError, match="`of` names `position`, which is not an id or bag feature"):
        ExperimentConfig.model_validate(experiment)
