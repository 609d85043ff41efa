"""Training that starts from a linear model: what the first weights are, and that the result is not below them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import expit
from stopping import stop_after

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.matrices import to_csr
from data_pipelines.errors import UserError
from models.layers.normalization import Standardize
from models.tables.rows import local_rows
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.training.faults import InterruptedTrainingError
from recsys.training.start.linear import _PENALTIES
from recsys.training.train import train
from recsys.training.trainer import Trainer
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer

FROZEN = {"optimizer": "sgd", "learning_rate": 0.0}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows whose logit is a sum over an id, a bag and a number; ``clicks`` and ``spent`` follow it too."""
    rng = np.random.default_rng(0)
    kind, size = rng.integers(0, 6, 2000), rng.normal(size=2000)
    tags = [rng.integers(0, 5, rng.integers(1, 4)).tolist() for _ in range(2000)]
    logit = kind - 2.5 + size + np.array([np.mean(bag) - 2 for bag in tags])
    columns = {
        "kind": kind,
        "size": size,
        "tags": tags,
        "clicked": (rng.random(2000) < 1 / (1 + np.exp(-logit))).astype(int),
        "spent": logit + rng.normal(size=2000) * 0.1,
        "clicks": rng.poisson(np.exp(logit / 4)),
    }
    path = tmp_path_factory.mktemp("linear") / "log.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


def configure(log: Path, task: dict[str, Any], **train_keys: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {
                "log": str(log),
                "tasks": {"task": task},
                "split": {"by": "random", "valid": 0.2, "test": 0.2},
                "features": {"kind": {"kind": "id"}, "tags": {"kind": "bag"}, "size": {"kind": "number"}},
            },
            "model": {"dim": 4, "wide": True, "tower": {"kind": "mlp", "hidden": [8]}, "interaction": {"kind": "none"}},
            "train": {"start": "linear", "batch_size": 256, "ema": 0.9, "tables": {"wide": FROZEN}, **train_keys},
        }
    )


CLICKED = {"column": "clicked"}


def losses(run: Path) -> list[tuple[int, float]]:
    kept = pl.read_parquet(run / "metrics.parquet").filter(pl.col("metric") == "loss")
    return list(kept.select("step", "value").iter_rows())


@pytest.fixture(scope="module")
def dataset(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(configure(log, CLICKED).data, tmp_path_factory.mktemp("data") / "dataset")


def test_the_first_weights_are_a_logistic_regression(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    with Trainer(configure(log, CLICKED), dataset, tmp_path / "run") as trainer:
        trainer.start()
        ranker, labels_N = trainer.state.ranker.eval(), dataset.labels("train")[:, 0]
        batch = next(iter(trainer._loader("train", batch_size=5000)))
        with torch.no_grad():
            logits_N = trainer.state.model(batch)[:, 0].numpy()
    matrix, names = to_csr(dataset, "train")
    tags = [at for at, name in enumerate(names) if name.startswith("tags=")]
    bags = matrix[:, tags].toarray()
    kinds = matrix[:, [at for at, name in enumerate(names) if name.startswith("kind=")]].toarray()
    scale = Standardize(1)
    scale.learn(*map(torch.from_numpy, dataset.summary.moments(dataset.schema)))
    numbers = scale(torch.from_numpy(matrix[:, -1].toarray())).numpy()
    design = np.hstack([kinds, bags / np.maximum(bags.sum(1, keepdims=True), 1), numbers])
    residual_N = expit(logits_N) - labels_N
    weights = np.linalg.lstsq(np.hstack([design, np.ones((len(design), 1))]), logits_N, rcond=None)[0]
    rebuilt = np.hstack([design, np.ones((len(design), 1))]) @ weights
    np.testing.assert_allclose(rebuilt, logits_N, atol=1e-3)  # linear in what it should be linear in
    assert abs(residual_N.sum()) < 0.5  # the bias is not penalised
    assert abs(float(numbers[:, 0] @ residual_N)) < max(_PENALTIES) * 3  # the gradient that the penalty balances
    assert ranker.wide is not None


def test_rows_count_by_their_weight(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "weighted.parquet"
    pl.read_parquet(log).with_columns(importance=1 + 3 * pl.col("clicked")).write_parquet(path)
    content = configure(path, CLICKED).model_dump()
    config = ExperimentConfig.model_validate(content | {"data": content["data"] | {"weight": "importance"}})
    dataset = prepare(config.data, tmp_path / "dataset")
    with Trainer(config, dataset, tmp_path / "run") as trainer:
        trainer.start()
        batch = next(iter(trainer._loader("train", batch_size=5000)))
        with torch.no_grad():
            logits_N = trainer.state.model(batch)[:, 0].numpy()
    labels_N = dataset.labels("train")[:, 0]
    residual_N = expit(logits_N) - labels_N
    assert abs(((1 + 3 * labels_N) * residual_N).sum()) < 1  # the bias is not penalised
    assert residual_N.sum() > 50


def test_training_keeps_the_start_where_it_is_the_best(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    spoilt = configure(log, CLICKED, epochs=2, dense={"learning_rate": 3.0})
    result = train(spoilt, dataset, tmp_path / "run")
    assert result.best_step == 0
    assert result.valid["task"]["auc"] > 0.8


def test_a_run_with_a_fixed_wide_part_resumes_to_the_same_losses(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    tables = {"optimizer": "adam", "learning_rate": 0.003, "weight_decay": 0.01, "wide": FROZEN}
    config = configure(log, CLICKED, epochs=2, batch_size=32, tables=tables)
    train(config, dataset, tmp_path / "undisturbed")
    with pytest.raises(InterruptedTrainingError):
        train(config, dataset, tmp_path / "stopped", on_step=stop_after(600))
    train(config, dataset, tmp_path / "stopped", resume=True)
    before, after = (losses(tmp_path / name) for name in ("undisturbed", "stopped"))
    assert before
    assert before == after


def test_a_fixed_wide_part_stays_while_the_rest_learns(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    tables = {"optimizer": "adam", "learning_rate": 0.003, "wide": FROZEN}
    with Trainer(configure(log, CLICKED, tables=tables), dataset, tmp_path / "run") as trainer:
        trainer.start()
        before = {shard.table: shard.weight.clone() for shard in local_rows(trainer.state.ranker)}
        for batch in trainer.loader:
            trainer.train_step(batch)
        for shard in local_rows(trainer.state.ranker):
            assert torch.equal(shard.weight, before[shard.table]) == shard.table.startswith("wide "), shard.table


@pytest.mark.parametrize(
    ("task", "metric", "bound"),
    [
        ({"column": "spent", "kind": "regression"}, "rmse", 0.6),
        ({"column": "clicks", "kind": "count"}, "deviance", 1.4),
    ],
)
def test_other_labels_start_from_their_own_linear_model(
    log: Path, tmp_path: Path, task: dict[str, Any], metric: str, bound: float
) -> None:
    config = configure(log, task)
    data = prepare(config.data, tmp_path / "dataset")
    with Trainer(config, data, tmp_path / "run") as trainer:
        assert trainer.evaluate()["task"][metric] < bound


def test_an_artifact_scores_like_the_run(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    train(configure(log, CLICKED, epochs=1), dataset, tmp_path / "run")
    predictions = evaluate(tmp_path / "run", dataset, "test", draws=0).predictions["task:logit"].to_numpy()
    artifact = export_run(tmp_path / "run", tmp_path / "artifact", [])
    scores = Scorer(Artifact.open(artifact.path)).score(pl.read_parquet(log), logits=True)["task:logit"].to_numpy()
    assert np.abs(predictions[:, None] - scores[None]).min(1).max() < 1e-4


def test_a_linear_start_without_a_wide_part_is_refused(log: Path, dataset: Dataset, tmp_path: Path) -> None:
    config = configure(log, CLICKED)
    narrow = config.model_copy(update={"model": config.model.model_copy(update={"wide": False})})
    with (
        pytest.raises(UserError, match=r"train\.start: linear .* set model\.wide to true"),
        Trainer(narrow, dataset, tmp_path / "run") as trainer,
    ):
        trainer.start()
