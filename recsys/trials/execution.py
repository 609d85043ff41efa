"""Running a trial, with its number of threads.

Letters: N rows, T tasks.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.blocks import Block, make_batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from data_pipelines.logs.sources import scan
from models.ranker import Ranker
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.evaluation.evaluate import predict
from recsys.exporting.export import export_shrunk, shrink, shrink_run
from recsys.exporting.measure import checkpoint_bytes
from recsys.runs.checkpoints import load_weights
from recsys.training.faults import DivergedError
from recsys.training.train import train
from recsys.trials.leave_out import leave_out_expert
from recsys.trials.perturb import masked, random_order, shuffled, strata
from recsys.trials.trials import FIGURES, LOGITS, RUN, Figures, Trial, TrialStore
from recsys.trials.warm import warm_ranker
from serving.artifact.export import as_served
from serving.batch.scorer import Scorer

_SCORED_ROWS = 20_000
_SCORING_REPEATS = 3
_BATCH_ROWS = 16384

Logits = dict[str, NDArray[np.float32]]
"""(N, T) by split."""


def experiment(trial: Trial, dataset: Dataset) -> ExperimentConfig:
    """The config that a trial trains with."""
    content = {**trial.config, "seed": trial.seed, "data": dataset.config.model_dump(mode="json")}
    content["train"] = {
        **trial.config["train"],
        "features": list(trial.features),
        "mlflow": None,
        "checkpoint_every": 1 << 30,
        "keep_checkpoints": 1,
    }
    return parse_config(ExperimentConfig, content, source="ablation")


def execute(trial: Trial, dataset_path: Path, store_path: Path) -> None:
    """Run ``trial`` and put it into the store, unless it is there."""
    torch.set_num_threads(trial.threads)
    store = TrialStore(store_path)
    with store.writing(trial) as folder:
        if folder is None:
            return
        began = time.perf_counter()
        dataset = Dataset.open(dataset_path, verify="sizes")
        logits, figures = _carry_out(trial, dataset, store, folder)
        broken = [split for split, logits_NT in logits.items() if not np.isfinite(logits_NT).all()]
        if broken:
            logits, figures = {}, Figures(failed=f"its {' and '.join(broken)} logits are NaN or infinite")
        figures = figures.model_copy(update={"seconds": time.perf_counter() - began})
        if logits:
            _write_logits(logits, dataset.schema.tasks, folder / LOGITS)
        (folder / FIGURES).write_text(figures.model_dump_json(indent=1))


def _carry_out(trial: Trial, dataset: Dataset, store: TrialStore, folder: Path) -> tuple[Logits, Figures]:
    if trial.change is None:
        return _train(trial, dataset, folder)
    assert trial.parent is not None
    if store.failure(trial.parent):
        return {}, Figures(failed="the training that it starts from failed")
    if trial.change == "export":
        return _serve(store.path(trial.parent) / RUN, experiment(trial, dataset), dataset, folder)
    return _look(trial, dataset, store)


def _train(trial: Trial, dataset: Dataset, folder: Path) -> tuple[Logits, Figures]:
    """Train, export, and score valid and test with the weights as they will be served."""
    config, run = experiment(trial, dataset), folder / RUN
    try:
        result = train(config, dataset, run)
    except DivergedError as error:
        return {}, Figures(failed=str(error).split(": ")[0])
    logits, figures = _serve(run, config, dataset, folder)
    if not trial.keep_run:
        shutil.rmtree(run)
    return logits, figures.model_copy(update={"train_seconds": result.seconds, "steps": result.steps})


def _serve(run: Path, config: ExperimentConfig, dataset: Dataset, folder: Path) -> tuple[Logits, Figures]:
    """Export ``run`` with the levers of ``config``, and score valid and test with the weights as they are served."""
    shrunk = shrink_run(run, [f"sparsity={config.sparsity.model_dump_json()}"], dataset=dataset.path)
    weights, logits = as_served(shrunk.after), Logits()
    ranker = weights.to_ranker()
    for split in ("valid", "test"):
        if dataset.splits.get(split):
            loader = Loader(dataset, split, batch_size=_BATCH_ROWS, features=weights.schema.feature_names)
            rows_N, logits_NT = predict(ranker, loader, torch.device("cpu"))
            logits[split] = logits_NT.numpy()[rows_N.argsort().numpy()]
    with TemporaryDirectory(dir=folder) as scratch:
        artifact = export_shrunk(shrunk, Path(scratch) / "artifact")
        sizes, rate = (artifact.bytes, artifact.model_bytes), _scoring_rate(Scorer(artifact), dataset)
    return logits, Figures(
        artifact_bytes=sizes[0],
        model_bytes=sizes[1],
        checkpoint_bytes=checkpoint_bytes(shrunk.before, dataset),
        score_rows_per_s=rate,
    )


def _scoring_rate(scorer: Scorer, dataset: Dataset) -> float | None:
    """Raw rows scored per second; the best of a few repeats. ``None`` if the log cannot be read."""
    try:
        rows = scan(dataset.encoder.plan).frame.head(_SCORED_ROWS).collect()
    except (UserError, OSError, pl.exceptions.PolarsError):
        return None
    seconds = []
    for _ in range(_SCORING_REPEATS):
        began = time.perf_counter()
        scorer.score(rows)
        seconds.append(time.perf_counter() - began)
    return len(rows) / min(seconds)


def _look(trial: Trial, dataset: Dataset, store: TrialStore) -> tuple[Logits, Figures]:
    """Score the test rows with the parent's weights after changing a few features in them."""
    assert trial.parent is not None
    config = experiment(trial, dataset)
    run = store.path(trial.parent) / RUN
    weights = as_served(shrink(load_weights(run), config.sparsity, dataset))
    columns = dataset.columns("test", weights.schema.feature_names)
    block, schema, note = columns.block([(0, len(columns))]), columns.schema, ""
    ranker = weights.to_ranker()
    match trial.change:
        case "mask" | "mask_oov":
            block = masked(block, schema, trial.changed, oov=trial.change == "mask_oov")
        case "permute":
            block = shuffled(block, schema, trial.changed, random_order(len(block), trial.seed))
        case "permute_within":
            stratum_N, partners = strata(block, schema, trial.changed)
            block = shuffled(block, schema, trial.changed, random_order(len(block), trial.seed, stratum_N))
            note = f"among rows alike in {' and '.join(partners)}" if partners else "goes with no other feature"
        case "leave_out_expert":
            note = leave_out_expert(ranker, _batches(schema, block), trial.changed[0])
        case "warm_start":
            ranker = warm_ranker(weights, dataset, trial.changed, config.train, trial.seed)
            block = masked(block, schema, trial.changed)
        case None:
            raise AssertionError
    return {"test": _score(ranker, block)}, Figures(note=note)


def _score(ranker: Ranker, block: Block) -> NDArray[np.float32]:
    logits_NT: NDArray[np.float32] = predict(ranker, _batches(ranker.schema, block), torch.device("cpu"))[1].numpy()
    return logits_NT


def _batches(schema: Schema, block: Block) -> Iterator[Batch]:
    for start in range(0, len(block), _BATCH_ROWS):
        yield make_batch(schema, [(block, start, min(start + _BATCH_ROWS, len(block)))])


def _write_logits(logits: Logits, tasks: Sequence[str], path: Path) -> None:
    parts = [
        pl.DataFrame({task: logits_NT[:, t] for t, task in enumerate(tasks)}).insert_column(
            0, pl.repeat(split, len(logits_NT), eager=True).alias("split")
        )
        for split, logits_NT in logits.items()
    ]
    pl.concat(parts).write_parquet(path)
