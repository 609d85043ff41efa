"""Training as a user meets it: runs that can be killed, resumed, moved to other ranks, and evaluated."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from stopping import stop_after

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.evaluation.evaluate import evaluate
from recsys.exporting.export import export_run
from recsys.runs.checkpoints import load_weights, read_tensors, step_name, steps
from recsys.training.faults import InterruptedTrainingError
from recsys.training.trainer import Trainer, train
from serving.batch.scorer import Scorer


@pytest.fixture(scope="module")
def experiment(tiny_data: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": 3,
        "data": tiny_data,
        "model": {"dim": 8, "tower": {"kind": "moe", "experts": 4, "hidden": 16, "noise": 0.1, "dropout": 0.1}},
        "train": {"epochs": 3, "batch_size": 128, "checkpoint_every": 5, "patience": 9},
    }


@pytest.fixture(scope="module")
def dataset(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = ExperimentConfig.model_validate(experiment)
    return prepare(config.data, tmp_path_factory.mktemp("data") / "dataset")


def configure(experiment: dict[str, Any], **changes: Any) -> ExperimentConfig:
    """The experiment with some ``block__key=value`` changed."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in experiment.items()}
    for name, value in changes.items():
        block, _, key = name.partition("__")
        if key:
            content.setdefault(block, {})[key] = value
        else:
            content[block] = value
    return ExperimentConfig.model_validate(content)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / "final", "")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def losses_of(run: Path) -> list[tuple[int, float]]:
    """Training losses by step, as they were logged."""
    kept = pl.read_parquet(run / "metrics.parquet").filter(pl.col("metric") == "loss")
    return list(kept.select("step", "value").iter_rows())


def command(*arguments: str | Path, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else ["-P"]
    return [sys.executable, *launcher, "-m", "recsys", *map(str, arguments)]


def run_command(*arguments: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if ranks > 1:
        arguments = (*arguments, "train.device=cpu")  # ranks do not share a GPU
    return subprocess.run(command(*arguments, ranks=ranks), capture_output=True, text=True, env=environment)


KILLED = """
import os, signal, sys
from pathlib import Path
from data_pipelines.dataset.dataset import Dataset
from recsys.config.experiment import load_config
from recsys.training.trainer import train

left = int(sys.argv[4])

def kill(rows, note):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

train(load_config(Path(sys.argv[1])), Dataset.open(Path(sys.argv[2])), sys.argv[3], on_step=kill)
"""
"""A training that is killed after so many steps, from within: nobody has to look at the right moment."""


@pytest.mark.parametrize("aside", [False, True])
def test_a_killed_training_resumes_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, aside: bool
) -> None:
    config = tmp_path / "config.yaml"
    settings = {"epochs": 4, "batch_size": 64, "checkpoint_every": 20, "checkpoint_aside": aside}
    long = experiment | {"train": experiment["train"] | settings}
    config.write_text(yaml.safe_dump(long))
    undisturbed = run_command("train", config, dataset.path, tmp_path / "undisturbed", "--json")
    assert undisturbed.returncode == 0, undisturbed.stderr

    killed = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(config), str(dataset.path), str(tmp_path / "killed"), "50"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert steps(tmp_path / "killed")
    assert not (tmp_path / "killed" / "manifest.json").exists()
    for step in steps(tmp_path / "killed"):
        open_directory(tmp_path / "killed" / "checkpoints" / step_name(step), "checkpoint")

    resumed = run_command("train", config, dataset.path, tmp_path / "killed", "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "killed"))
    losses = [losses_of(tmp_path / run) for run in ("undisturbed", "killed")]
    assert len(losses[0]) > 1
    assert losses[0] == losses[1]
    results = [json.loads(run.stdout.splitlines()[-1]) for run in (undisturbed, resumed)]
    assert results[0]["valid"] == results[1]["valid"]


@pytest.mark.parametrize(
    "changes",
    [
        {"train__tables": {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.001}},
        {
            "model__batch_norm": True,
            "train__ema": 0.9,
            "train__dense": {"optimizer": "adam", "clip_norm": 1.0},
            "train__evaluate_every": 7,
        },
        {"train__schedule": {"kind": "cosine", "warmup_steps": 10}, "train__precision": "bf16"},
        {"sparsity": {"row_pruning": {"sparsity": 0.5}}},
        {"train__checkpoint_aside": True, "train__checkpoint_every": 1, "train__ema": 0.9},
    ],
)
def test_a_stopped_training_resumes_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = configure(experiment, **changes)
    train(config, dataset, tmp_path / "undisturbed")
    with pytest.raises(InterruptedTrainingError, match="--resume"):
        train(config, dataset, tmp_path / "stopped", on_step=stop_after(2000))
    train(config, dataset, tmp_path / "stopped", resume=True)
    assert_same(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "stopped"))


def test_a_training_that_ends_between_epochs_resumes_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = configure(experiment, train__epochs=3, train__patience=3)
    undisturbed = train(config, dataset, tmp_path / "undisturbed")

    def stop(_step: int, _value: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, tmp_path / "stopped", on_eval=stop)
    resumed = train(config, dataset, tmp_path / "stopped", resume=True)
    assert resumed.steps == undisturbed.steps
    assert_same(final_tensors(tmp_path / "undisturbed"), final_tensors(tmp_path / "stopped"))


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


@pytest.mark.parametrize(("sharding", "spread"), [("table_wise", False), ("row_wise", False), ("auto", True)])
def test_two_ranks_train_and_their_checkpoint_goes_on_at_one(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path, sharding: str, spread: bool
) -> None:
    config = tmp_path / "config.yaml"
    tables = {table.name: {"sharding": sharding} for table in dataset.schema.tables}
    tower = experiment["model"]["tower"] | {"expert_parallel": spread}
    model = experiment["model"] | {"tables": tables, "tower": tower}
    every_step = experiment["train"] | {"checkpoint_every": 1}
    config.write_text(yaml.safe_dump(experiment | {"model": model, "train": every_step}))
    run = tmp_path / "run"
    two = run_command("train", config, dataset.path, run, "--json", ranks=2)
    assert two.returncode == 0, two.stderr
    result = json.loads(two.stdout.splitlines()[-1])

    alone = evaluate(run, dataset, "valid", draws=0)
    assert alone.tasks["click"]["logloss"] == pytest.approx(result["valid"]["logloss"], abs=1e-6)
    assert alone.tasks["click"]["auc"] == pytest.approx(result["valid"]["auc"], abs=1e-6)

    # Take the end away, so that the run is one that was killed, and go on at one rank under another sharding.
    (run / "manifest.json").unlink()
    last = steps(run)[-1]
    weights = load_weights(run)
    other = "row_wise" if sharding == "table_wise" else "table_wise"
    resharded = {"tables": {table: {"sharding": other} for table in tables}}
    result_one = train(configure(experiment, model=model | resharded), dataset, run, resume=True)
    assert result_one.steps == last == result["steps"]
    one = load_weights(run)
    for part in ("tables", "dense"):
        assert_same(getattr(one, part), getattr(weights, part))


def test_spread_experts_resume_to_the_same_weights(
    experiment: dict[str, Any], dataset: Dataset, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    tower = experiment["model"]["tower"] | {"expert_parallel": True}
    config.write_text(yaml.safe_dump(experiment | {"model": experiment["model"] | {"tower": tower}}))
    run = tmp_path / "run"
    undisturbed = run_command("train", config, dataset.path, run, ranks=2)
    assert undisturbed.returncode == 0, undisturbed.stderr
    final = final_tensors(run)
    # Take all after the first checkpoint away, so that the run is one that was killed.
    for path in (run / "manifest.json", run / "metrics.parquet"):
        path.unlink()
    for folder in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    resumed = run_command("train", config, dataset.path, run, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(final, final_tensors(run))


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
    file = tmp_path / "config.yaml"
    settings = {"model": model, "train": experiment["train"] | still, "export": {"calibrate": False}}
    file.write_text(yaml.safe_dump(experiment | {"data": data} | settings))
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
    with pytest.raises(
        UserError, match=r"train\.start: .*yesterday was trained on a data set that .*stranger neither is"
    ):
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
