"""What a ranker learns of drawn negatives: by rows and by lists of a positive and its negatives."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.training.train import train
from recsys.training.trainer import Trainer
from serving.batch.scorer import Scorer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Users of two groups, each with its own half of the items; item 0 is very popular with both."""
    folder = tmp_path_factory.mktemp("sampled")
    rng = np.random.default_rng(1)
    users = rng.integers(0, 40, 2400)
    items = np.where(rng.random(2400) < 0.4, 0, 1 + rng.integers(0, 10, 2400) * 2 + users % 2)
    pl.DataFrame({"u": users, "i": items, "t": np.arange(2400)}).write_parquet(folder / "log.parquet")
    return prepare(experiment(str(folder / "log.parquet")).data, folder / "dataset")


def experiment(log: str, **changes: Any) -> ExperimentConfig:
    data = {
        "log": log,
        "time": "t",
        "user": "u",
        "keys": ["u", "i"],
        "tasks": {"chosen": {"column": "positive"}},
        "sampling": {"item": "i", "negatives": 4, "by": "popularity", "exponent": 1.0},
        "features": {"u": {"kind": "id"}, "i": {"kind": "id"}},
    }
    return ExperimentConfig.model_validate(
        {
            "data": data,
            "model": {"dim": 8, "tower": {"kind": "mlp", "hidden": [16]}},
            "train": {
                "epochs": 3,
                "batch_size": 256,
                "monitor": {"gauc": 1},
                "tables": {"optimizer": "adam", "learning_rate": 0.03},
                "dense": {"learning_rate": 0.02},
                **changes,
            },
        }
    )


def test_shuffling_keeps_a_positive_with_its_negatives(dataset: Dataset) -> None:
    rows = np.empty(0, np.int64)
    for batch in Loader(dataset, "train", batch_size=642, shuffle=True, lists=True):
        assert batch.lists is not None
        assert batch.labels is not None
        lists, sizes = np.unique(batch.lists.numpy(), return_counts=True)
        assert lists.tolist() == list(range(len(sizes)))
        assert set(sizes) == {5}
        assert (batch.labels[:, 0].reshape(-1, 5).numpy() == [1, 0, 0, 0, 0]).all()
        rows = np.append(rows, batch.rows.numpy())
    assert sorted(rows) == list(range(dataset.splits["train"]))
    assert (np.diff(rows[::5]) == 5).mean() < 0.01


@pytest.mark.parametrize("loss", ["pointwise", "softmax", "pairwise"])
def test_scores_rank_a_popular_item_as_high_as_it_is_chosen(dataset: Dataset, tmp_path: Path, loss: str) -> None:
    """Negatives come as often as positives, so without the correction the popular item would look like any other."""
    config = experiment(dataset.config.log, loss={"kind": loss})
    result = train(config, dataset, tmp_path / "run")
    scorer = Scorer(export_run(tmp_path / "run", tmp_path / "artifact"))
    pairs = pl.DataFrame({"u": [2] * 21, "i": list(range(21))})
    logits = scorer.score(pairs, logits=True)["chosen:logit"].to_numpy()
    order = np.argsort(-logits)
    assert order[0] == 0
    assert set(order[1:9]) <= {item for item in range(1, 21) if item % 2 == 1}  # of the user's own group
    assert result.valid["chosen"]["gauc"] > 0.6
    if loss == "pointwise":  # P(item | user) / P(another item | user) are odds
        odds = np.exp(logits[0] - logits[1:][np.arange(1, 21) % 2 == 1].mean())
        assert 4 < odds < 30  # 0.4 against 0.06
        predicted = evaluate(tmp_path / "run", dataset, "test", draws=0).predictions
        served = scorer.score(dataset.keys("test").select("u", "i"), logits=True)["chosen:logit"]
        log_q = dataset.feature("test", "log_q:chosen")
        np.testing.assert_allclose(predicted["chosen:logit"], served - log_q, atol=2e-2)


def test_a_linear_start_is_corrected_too(tmp_path: Path, dataset: Dataset) -> None:
    """Of numbers alone, so that the wide part has no tables."""
    content = experiment(dataset.config.log, start="linear").model_dump()
    content["data"]["features"] = {"n": {"kind": "statistic", "measure": "count", "by": ["i"]}}
    content["model"] |= {"wide": True, "interaction": {"kind": "none"}}
    config = ExperimentConfig.model_validate(content)
    numbers = prepare(config.data, tmp_path / "dataset")
    with Trainer(config, numbers, tmp_path / "run") as trainer:
        trainer.start()
        [batch] = Loader(numbers, "train", batch_size=1 << 20)
        with torch.no_grad():
            logits = batch.of_sample(trainer.state.model(batch))
    assert batch.labels is not None
    assert float((logits.sigmoid() - batch.labels).sum()) == pytest.approx(0, abs=1)  # the bias is not penalised


def test_a_loss_over_lists_needs_lists() -> None:
    content = experiment("log.parquet", loss={"kind": "pairwise"}).model_dump()
    content["data"]["sampling"] = None
    with pytest.raises(ValidationError, match=r"train.loss.kind pairwise .* let data.sampling draw negatives"):
        ExperimentConfig.model_validate(content)
