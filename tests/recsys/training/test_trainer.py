"""Training as a user meets it: orders, seeds, evaluation, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_examples import assert_same, configure, final_tensors, run_command

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.runs.checkpoints import load_weights
from recsys.training.train import train
from recsys.training.trainer import Trainer
from serving.batch.scorer import Scorer


def test_every_epoch_has_an_order_of_its_own(experiment: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    epochs: list[int] = []

    def note_epoch(_rows: int, _note: str) -> None:
        epochs.append(trainer.loader.state_dict()["epoch"])

    config = configure(experiment, train__epochs=3, train__patience=3)
    with Trainer(config, dataset, tmp_path / "run", on_step=note_epoch) as trainer:
        trainer.fit()
    steps = len(epochs) // 3
    assert epochs == [0] * steps + [1] * steps + [2] * steps


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(configure(experiment, seed=seed, train__epochs=1), dataset, tmp_path / name)
    assert_same(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    key = "model.heads.linear.weight"
    assert not torch.equal(final_tensors(tmp_path / "a")[key], final_tensors(tmp_path / "c")[key])


def test_weights_score_as_training_did(experiment: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    result = train(configure(experiment, train__device="cpu"), dataset, tmp_path / "run")
    evaluation = evaluate(tmp_path / "run", dataset, "valid")
    for metric, value in result.valid["click"].items():
        assert evaluation.tasks["click"][metric] == pytest.approx(value, abs=1e-6)
    kept = pl.read_parquet(tmp_path / "run" / "predictions" / "valid.parquet")
    assert kept.columns[:1] == ["row"]
    assert {"user", "item", "click:label", "click:logit"} <= set(kept.columns)
    low, high = evaluation.intervals["click"]["auc"]
    assert low < evaluation.tasks["click"]["auc"] < high


def test_metrics_are_kept_as_one_row_a_measurement(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    train(configure(experiment), dataset, tmp_path / "run")
    kept = pl.read_parquet(tmp_path / "run" / "metrics.parquet")
    assert kept.columns == ["step", "epoch", "seconds", "split", "metric", "value"]
    aucs = kept.filter((pl.col("split") == "valid") & (pl.col("metric") == "click/auc"))
    assert len(aucs) == 4  # three epochs, and the weights that are kept
    shares = kept.filter(pl.col("metric").str.starts_with("experts/"))
    assert shares.group_by("step").agg(pl.col("value").sum())["value"].to_list() == pytest.approx([1.0] * 3)


def test_early_stop_keeps_the_best_weights(experiment: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    config = configure(
        experiment, train__epochs=30, train__patience=2, train__tables={"optimizer": "adagrad", "learning_rate": 0.5}
    )
    result = train(config, dataset, tmp_path / "run")
    assert result.stopped == "patience"
    kept = pl.read_parquet(tmp_path / "run" / "metrics.parquet").filter(pl.col("metric") == "click/auc")
    assert result.valid["click"]["auc"] == pytest.approx(kept["value"].max())
    assert result.best_step < result.steps


def test_fewer_features_are_read_from_the_same_data_set(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    fewer = {name: feature for name, feature in experiment["data"]["features"].items() if name != "tags"}
    train(configure(experiment, data__features=fewer, train__epochs=1), dataset, tmp_path / "run")
    assert "tags" not in load_weights(tmp_path / "run").tables
    assert evaluate(tmp_path / "run", dataset).tasks["click"]["auc"] > 0.5


def test_unknown_ids_teach_the_row_that_unseen_values_share(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    known = configure(experiment, train__epochs=1)
    some_unknown = configure(experiment, train__epochs=1, train__unknown={"item": 0.2})
    start = configure(experiment, train__epochs=1, train__tables={"optimizer": "sgd", "learning_rate": 0})
    rows = []
    for number, config in enumerate((start, known, some_unknown)):
        train(config, dataset, tmp_path / str(number))
        rows.append(load_weights(tmp_path / str(number)).tables["item"][1])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_day_later_training_starts_from_the_run_of_the_day_before(
    experiment: dict[str, Any], tiny_log: Path, tmp_path: Path, ranks: int
) -> None:
    log = pl.read_parquet(tiny_log)
    log.head(800).write_parquet(tmp_path / "day1.parquet")
    log.tail(1200).write_parquet(tmp_path / "day2.parquet")
    data = experiment["data"] | {"log": str(tmp_path / "day1.parquet")}
    model = experiment["model"] | {"wide": True}
    config = configure(experiment, data=data, model=model, export__calibrate=False)
    first = prepare(config.data, tmp_path / "first")
    train(config, first, tmp_path / "yesterday")
    second = prepare(config.data, tmp_path / "second", log=str(tmp_path / "day2.parquet"), extend=first.path)
    assert second.schema.table("item").rows > first.schema.table("item").rows

    still = {"tables": {"learning_rate": 0}, "dense": {"learning_rate": 1e-30}, "start": str(tmp_path / "yesterday")}
    settings = {"model": model, "train": experiment["train"] | still, "export": {"calibrate": False}}
    today = experiment | {"data": data} | settings
    if ranks == 1:
        train(ExperimentConfig.model_validate(today), second, tmp_path / "today")
    else:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(today))
        done = run_command("train", file, second.path, tmp_path / "today", ranks=ranks)
        assert done.returncode == 0, done.stderr

    # Nothing was learned, so values that are new have to mean what they meant the day before: OOV.
    scores = [
        Scorer(export_run(tmp_path / run, tmp_path / f"{run}.artifact")).score(log.tail(1200), logits=True)["click"]
        for run in ("yesterday", "today")
    ]
    np.testing.assert_allclose(scores[1].to_numpy(), scores[0].to_numpy(), atol=1e-5)

    # What else a run may have been trained on, or be, is refused.
    stranger = prepare(config.data, tmp_path / "stranger", log=str(tmp_path / "day2.parquet"))
    said = r"train\.start: .*yesterday was trained on another data set, which .*stranger does not extend"
    with pytest.raises(UserError, match=said):
        train(configure(experiment, model=model, train__start=still["start"]), stranger, tmp_path / "refused")
    wider = configure(experiment, data=data, model=model | {"dim": 16}, train__start=still["start"])
    with pytest.raises(UserError, match=r"train\.start: .*yesterday has another model: 'user' has shape \(8,\) there"):
        train(wider, second, tmp_path / "wider")


def test_diverging_training_stops_with_the_batch_saved(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = configure(experiment, train__dense={"learning_rate": 1e30})
    with pytest.raises(UserError, match="the loss became"):
        train(config, dataset, tmp_path / "run")
    batch = load_file(tmp_path / "run" / "failed-batch-rank0.safetensors")
    assert len(batch["labels"]) == len(batch["sparse.user.values"]) == 128 or len(batch["labels"]) > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train__monitor": {"aucc": 1.0}}, "train.monitor.aucc"),
        ({"data__user": None}, "data.user differs"),
        ({"model__context": ["nobody"]}, "model.context"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(configure(experiment, **changes), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_and_not_resumed_with_another_config(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = configure(experiment, train__epochs=1)
    first = train(config, dataset, tmp_path / "run")
    with pytest.raises(UserError, match="already exists"):
        train(config, dataset, tmp_path / "run")
    assert train(config, dataset, tmp_path / "run", resume=True) == first
    with pytest.raises(UserError, match="differs from the config given"):
        train(configure(experiment, train__batch_size=64), dataset, tmp_path / "run", resume=True)
