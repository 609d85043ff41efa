"""Training on weighted lists, its resumption, and the same scores in evaluation, jobs, requests and for candidates."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from models.layers.losses import LossConfig, loss_of_labelled
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.runs.checkpoints import read_tensors
from recsys.training.faults import InterruptedTrainingError
from recsys.training.train import train
from recsys.training.trainer import Trainer
from serving.artifact.artifact import Artifact
from serving.batch import inputs
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions
from serving.batch.scorer import Scorer

SETTINGS = {
    "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [8]}},
    "train": {"epochs": 2, "batch_size": 64, "checkpoint_every": 3, "loss": {"kind": "calibrated"}},
}
Made = tuple[ExperimentConfig, Dataset, Path]


def log() -> pl.DataFrame:
    """Lists of eight items, of which the cheaper ones are clicked; half of the lists count three times."""
    rng = np.random.default_rng(0)
    lists, rows = 200, 1600
    price = np.round(rng.lognormal(3, 1, rows), 2)
    rank = price.reshape(lists, 8).argsort(1).argsort(1).ravel()
    return pl.DataFrame(
        {
            "query": np.repeat(np.arange(lists), 8),
            "time": 1_700_000_000 + 60 * np.repeat(np.arange(lists), 8),
            "item": rng.integers(0, 30, rows),
            "price": price,
            "weight": np.repeat(1.0 + 2.0 * (np.arange(lists) % 2), 8),
            "click": (rng.random(rows) < 0.7 / (1 + rank)).astype(int),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("lists")
    log().write_parquet(folder / "log.parquet", row_group_size=100)
    data = {
        "log": str(folder / "log.parquet"),
        "time": "time",
        "group": ["query"],
        "weight": "weight",
        "keys": ["query", "item"],
        "tasks": {"click": {"column": "click"}},
        "features": {
            "item": {"kind": "id"},
            "price": {"kind": "relative", "measures": ["rank", "zscore"]},
            "seen": {"kind": "statistic", "measure": "count", "by": ["item"]},
            "popular": {"kind": "relative", "of": "seen", "measures": ["rank"]},
        },
    }
    config = ExperimentConfig.model_validate(SETTINGS | {"data": data})
    dataset = prepare(config.data, folder / "dataset")
    train(config, dataset, folder / "run")
    return config, dataset, folder


def given(dataset: Dataset) -> pl.DataFrame:
    """The test rows as they are to be scored, each with its own past."""
    return dataset.raw("test").select("query", "time", "item", "price", "seen")


@pytest.fixture(scope="module")
def artifact(made: Made) -> Artifact:
    return export_run(made[2] / "run", made[2] / "artifact")


def test_metrics_of_lists_and_their_intervals_are_measured(made: Made) -> None:
    _, dataset, folder = made
    found = evaluate(folder / "run", dataset, "test", draws=20)
    metrics, intervals = found.tasks["click"], found.intervals["click"]
    assert {"list_ndcg@10", "list_mrr", "list_auc", "list_recall@10"} <= set(metrics) & set(intervals)
    assert intervals["list_auc"].low <= metrics["list_auc"] <= intervals["list_auc"].high
    assert {"click:weight", ":list"} <= set(found.predictions.columns)


@pytest.mark.parametrize("kind", ["softmax", "lambdarank"])
def test_a_loss_over_lists_learns_their_order(made: Made, kind: str, tmp_path: Path) -> None:
    config, dataset, _ = made
    settings = SETTINGS["train"] | {"epochs": 6, "loss": {"kind": kind}, "dense": {"learning_rate": 0.02}}
    config = ExperimentConfig.model_validate(config.model_dump() | {"train": settings})
    assert train(config, dataset, tmp_path / "run").valid["click"]["list_auc"] > 0.6


@pytest.mark.parametrize("kind", ["softmax", "lambdarank", "calibrated"])
def test_two_ranks_have_the_weighted_losses_of_one(made: Made, kind: str) -> None:
    """Every list is in one rank's batch, and the ranks' means are those of one rank, weighted by what they count."""

    def counted(ranks: int) -> list[tuple[float, int]]:
        found = []
        for rank in range(ranks):
            size = made[1].splits["train"] // ranks
            loader = Loader(made[1], "train", batch_size=size, shuffle=True, rank=rank, world_size=ranks, lists=True)
            [batch] = list(loader)
            assert batch.labels is not None
            assert batch.weights is not None
            assert batch.lists is not None
            labels = batch.labels[:, 0]
            arguments = batch.dense.sum(1), labels, batch.lists, batch.weights[:, 0]
            count = len(batch) if kind == "calibrated" else len({*batch.lists[labels > 0].tolist()})
            found.append((float(loss_of_labelled(LossConfig.parse({"kind": kind}), *arguments)), count))
        return found

    [(alone, everything)] = counted(1)
    (one, ones), (other, others) = counted(2)
    assert ones + others == everything
    assert (one * ones + other * others) / everything == pytest.approx(alone, rel=1e-5)
    assert (one + other) / 2 == pytest.approx(alone, rel=0.02)  # what training takes: ranks have nearly equal shares


def test_a_stopped_training_resumes_to_the_same_weights(made: Made, tmp_path: Path) -> None:
    config, dataset, folder = made
    with Trainer(config, dataset, tmp_path / "run") as trainer:

        def stop(rows: int, note: str) -> None:
            trainer.processes.stop_requested = trainer.train_state.step == 7

        trainer.on_step = stop
        with pytest.raises(InterruptedTrainingError):
            trainer.fit()
    train(config, dataset, tmp_path / "run", resume=True)
    one, other = (read_tensors(run / "checkpoints" / "final", "model.") for run in (folder / "run", tmp_path / "run"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.numpy(), other[name].numpy(), err_msg=name)


def test_a_job_scores_as_evaluation_does_wherever_its_parts_end(
    made: Made, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, dataset, folder = made
    expected = evaluate(folder / "run", dataset, "test", draws=0).predictions
    monkeypatch.setattr(inputs, "PART_ROWS", 50)
    rows = given(dataset)
    rows.write_parquet(tmp_path / "rows.parquet", row_group_size=30)
    result = run_job(artifact, str(tmp_path / "rows.parquet"), tmp_path / "scores", JobOptions(logits=True))
    assert result.parts > 2
    scores = pl.read_parquet(tmp_path / "scores" / "part-*.parquet")
    np.testing.assert_allclose(scores["click:logit"], expected["click:logit"], atol=3e-6)


def test_a_request_without_the_columns_of_lists_is_one_list(made: Made, artifact: Artifact) -> None:
    _, dataset, folder = made
    expected = evaluate(folder / "run", dataset, "test", draws=0).predictions
    query = expected["query"][0]
    rows = given(dataset).filter(pl.col("query") == query).drop("query")
    scorer = Scorer(artifact)
    scores = scorer.score(scorer.read(rows.lazy()).collect(), logits=True)
    np.testing.assert_allclose(
        scores["click:logit"], expected.filter(pl.col("query") == query)["click:logit"], atol=3e-6
    )


def test_candidates_of_a_user_are_one_list(artifact: Artifact, made: Made, tmp_path: Path) -> None:
    last = log().tail(8)
    last.select("item", "price").write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"query": [7, 9], "time": [1_800_000_000] * 2}).write_parquet(tmp_path / "users.parquet")
    options = JobOptions(candidates=str(tmp_path / "items.parquet"))
    run_job(artifact, str(tmp_path / "users.parquet"), tmp_path / "scores", options)
    found = pl.read_parquet(tmp_path / "scores" / "part-*.parquet")["click"].to_numpy().reshape(2, 8)
    alone = Scorer(artifact).score(last.select("item", "price", time=pl.lit(1_800_000_000)))["click"]
    for scores in found:
        np.testing.assert_allclose(scores, alone, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda rows: rows.reverse().sort("item"),
            "rows of one list are not next to each other.*sort the rows by query",
        ),
        (lambda rows: rows.drop("query"), "`group` reads the column 'query', which is not there"),
    ],
)
def test_rows_whose_lists_cannot_be_known_are_refused(
    made: Made, artifact: Artifact, tmp_path: Path, change: Any, said: str
) -> None:
    rows = given(made[1])
    change(rows).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=said):
        run_job(artifact, str(tmp_path / "rows.parquet"), tmp_path / "scores")


def test_a_loss_over_lists_needs_lists(made: Made) -> None:
    data = made[0].data.model_dump() | {"group": None, "features": {"item": {"kind": "id"}}}
    with pytest.raises(ValueError, match=r"train\.loss\.kind calibrated compares the rows of a list: set data\.group"):
        ExperimentConfig.model_validate(SETTINGS | {"data": data})


def test_weights_of_zero_are_refused(made: Made, tmp_path: Path) -> None:
    log().with_columns(weight=pl.lit(0)).write_parquet(tmp_path / "log.parquet")
    data = made[0].data.model_dump() | {"log": str(tmp_path / "log.parquet")}
    config = ExperimentConfig.model_validate(SETTINGS | {"data": data})
    with pytest.raises(UserError, match=r"task click: the weights of all .* labelled rows of the train split are 0"):
        train(config, prepare(config.data, tmp_path / "dataset"), tmp_path / "run")
