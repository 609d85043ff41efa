"""Paired differences to baselines, and what is said about them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from recsys.evaluation.baselines.measure import measure_baseline
from recsys.evaluation.standing import BASE_RATE, compare, fit_baselines

ROWS = 4000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """``kind`` decides the rate of ``click``, and the mean of ``seconds``."""
    folder, rng = tmp_path_factory.mktemp("standing"), np.random.default_rng(0)
    kind = rng.integers(0, 5, ROWS)
    click = rng.random(ROWS) < 1 / (1 + np.exp(2.0 - kind))
    frame = pl.DataFrame({"kind": kind, "click": click.astype(int), "seconds": kind + rng.normal(size=ROWS)})
    frame.write_parquet(folder / "log.parquet")
    return prepare(config(folder, {"click": {"column": "click"}}), folder / "dataset")


def config(folder: Path, tasks: dict[str, object]) -> DataConfig:
    return DataConfig.model_validate(
        {
            "log": str(folder / "log.parquet"),
            "tasks": tasks,
            "split": {"by": "random", "valid": 0.2, "test": 0.2},
            "features": {"kind": {"kind": "id"}},
        }
    )


def test_a_model_is_level_with_itself_and_better_or_worse_outside_the_interval(dataset: Dataset) -> None:
    fitted, _ = fit_baselines(dataset, names=["linear"])
    linear_N = fitted["linear"].logits("test")
    noise_N = np.random.default_rng(1).normal(size=len(linear_N))
    others = {"same": linear_N, "noise": noise_N, BASE_RATE: fitted[BASE_RATE].logits("test")}
    found = compare(dataset, "test", linear_N, others)
    same = found.against["same"]["auc"]
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "level")
    assert found.against["noise"]["auc"].verdict == "better"
    assert found.against[BASE_RATE]["auc"].baseline == pytest.approx(0.5)
    assert found.lost_to == []
    reverse = compare(dataset, "test", noise_N, {"linear": linear_N})
    assert reverse.lost_to == ["linear"]
    assert reverse.against["linear"]["logloss"].verdict == "worse"  # of log loss, lower is better
    assert reverse.against["linear"]["auc"].difference == -found.against["noise"]["auc"].difference
    assert reverse.lines()["linear"].startswith("the model is worse: auc 0.")


def test_a_model_that_orders_well_and_predicts_badly_has_lost(dataset: Dataset) -> None:
    fitted, _ = fit_baselines(dataset, names=["linear"])
    linear_N = fitted["linear"].logits("test")
    found = compare(dataset, "test", linear_N - 2, {"linear": linear_N})
    assert found.lines()["linear"].startswith("the model is level in auc, worse in logloss: auc 0.")
    assert found.lost_to == ["linear"]


def test_the_base_rate_is_compared_for_every_kind_of_task(dataset: Dataset, tmp_path: Path) -> None:
    frame = pl.read_parquet(dataset.config.log)
    frame.write_parquet(tmp_path / "log.parquet")
    regression = prepare(config(tmp_path, {"s": {"column": "seconds", "kind": "regression"}}), tmp_path / "dataset")
    fitted, note = fit_baselines(regression)
    assert list(fitted) == [BASE_RATE]
    assert "need a binary task" in note
    mean_N = fitted[BASE_RATE].logits("test")
    assert mean_N[0] == pytest.approx(float(np.mean(regression.labels("train"))), rel=1e-5)
    found = compare(regression, "test", regression.labels("test")[:, 0].astype(float), {BASE_RATE: mean_N})
    assert found.against[BASE_RATE]["rmse"].verdict == "better"
    with pytest.raises(UserError, match="need a binary task"):
        fit_baselines(regression, names=["linear"])


def test_large_data_has_only_the_base_rate_unless_asked(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.evaluation.standing.MOST_ROWS", 100)
    fitted, note = fit_baselines(dataset)
    assert list(fitted) == [BASE_RATE]
    assert "--baselines" in note
    assert list(fit_baselines(dataset, names=["popularity"])[0]) == [BASE_RATE, "popularity"]


def test_the_base_rate_counts_rows_by_their_weight(dataset: Dataset, tmp_path: Path) -> None:
    frame = pl.read_parquet(dataset.config.log).with_columns(importance=1 + 3 * pl.col("click"))
    frame.write_parquet(tmp_path / "log.parquet")
    content = config(tmp_path, {"click": {"column": "click"}}).model_dump()
    weighted = prepare(DataConfig.model_validate(content | {"weight": "importance"}), tmp_path / "dataset")
    labels_N = weighted.labels("train")[:, 0]
    rate = np.average(labels_N, weights=1 + 3 * labels_N)
    fitted, _ = fit_baselines(weighted, names=[])
    assert fitted[BASE_RATE].logits("test")[0] == pytest.approx(np.log(rate / (1 - rate)))


def test_rows_without_a_label_are_left_out_of_baselines(dataset: Dataset, tmp_path: Path) -> None:
    frame = pl.read_parquet(dataset.config.log)
    unknown = frame.with_columns(click=pl.lit(None, pl.Int64)).head(500)
    frame.vstack(unknown.select(frame.columns)).write_parquet(tmp_path / "log.parquet")
    partly = prepare(config(tmp_path, {"click": {"column": "click"}}), tmp_path / "dataset")
    fitted, note = fit_baselines(partly)
    assert {"popularity", "linear"} <= fitted.keys()
    assert "label" not in note
    logits = {name: baseline.logits("test") for name, baseline in fitted.items()}
    assert all(len(logits_N) == partly.splits["test"] for logits_N in logits.values())
    found = compare(partly, "test", logits["linear"], logits)
    assert found.against[BASE_RATE]["auc"].verdict == "better"
    assert measure_baseline("linear", partly, fitted=fitted["linear"])["auc"] > 0.6


def test_a_metric_that_the_rows_do_not_define_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    frame = pl.read_parquet(dataset.config.log)
    split = pl.when(pl.col("click") == 0).then(pl.lit("test")).otherwise(pl.lit("train"))
    few = frame.with_columns(split=pl.when(pl.int_range(pl.len()) % 2 == 0).then(split).otherwise(pl.lit("train")))
    few.write_parquet(tmp_path / "log.parquet")
    content = config(tmp_path, {"click": {"column": "click"}}).model_dump(mode="json")
    content["split"] = {"by": "column", "column": "split"}
    one_class = prepare(DataConfig.model_validate(content), tmp_path / "dataset")
    fitted, note = fit_baselines(one_class, names=["popularity"])
    logits = {name: baseline.logits("test") for name, baseline in fitted.items()}
    found = compare(one_class, "test", logits["popularity"], logits, note=note)
    assert (found.main, found.lost_to) == ("logloss", [])
    assert list(found.against["popularity"]) == ["logloss"]
    assert found.note.startswith("auc is undefined on the test split: all ")
