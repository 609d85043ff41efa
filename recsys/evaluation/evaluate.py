"""Predictions on a split, and every metric of them.

Letters: N rows, T tasks.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.object_store import fetched
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.names import LIST, key_name
from data_pipelines.notebook import html_table
from models.layers.heads import TaskKind
from models.moe.router import routers
from models.weights import Weights
from recsys.config.experiment import stored_config
from recsys.evaluation.added import ADDED_FILE, added_values
from recsys.evaluation.comparison import TestRows
from recsys.evaluation.derived import derived, scores_of
from recsys.evaluation.experts import EXPERTS_FILE, GAINS_FILE, expert_gains, expert_values
from recsys.evaluation.table_ranks import TableRanks, table_ranks, write_table_ranks
from recsys.metrics.arrays import Floats, Groups, group_codes, row_weights, weighted_mean
from recsys.metrics.binary import AUC, LOG_LOSS
from recsys.metrics.bootstrap import Interval
from recsys.metrics.grouped import LIST_METRICS
from recsys.metrics.metric import Metric, measure_all
from recsys.metrics.registry import metrics_of
from recsys.metrics.regression import POISSON_DEVIANCE, RMSE
from recsys.metrics.rows import NO_FACTS, GroupKind, RowFacts
from recsys.runs.checkpoints import CONFIG_FILE, load_weights
from serving.artifact.card import SplitMetrics
from serving.artifact.device import DeviceName, scoring_device
from serving.formula import SCORE, Formula

_WITH_INTERVAL = (AUC, LOG_LOSS, POISSON_DEVIANCE, RMSE, *LIST_METRICS)

TaskMetrics = dict[str, dict[str, float]]
"""Metrics by task, then by name."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics and predictions of a model on one split.

    Attributes:
        tasks: Metrics by task, tasks in the schema's order.
        intervals: 95% bootstrap intervals (whole users drawn) by task, then by metric: of AUC, log loss, RMSE,
            Poisson deviance and the metrics of lists.
        slices: One row per value of the slice column: value, rows, mean label and metrics; ``None`` without one.
        predictions: (N) ``row``, the data set's keys, and ``<task>:label`` and ``<task>:logit`` of every task;
            ``score`` if rows are ranked by a formula.
        features: The encoded features that the model reads.
        derived: Metrics of what is computed from the tasks (:func:`~recsys.evaluation.derived.derived`), by name; their
            intervals are among ``intervals``.
        ranks: How many dimensions each table uses.

    Example:
        >>> evaluation = rs.evaluate(Path("run"), rs.Dataset.open(Path("dataset")), "test")
        >>> evaluation.predictions.columns
        ['row', 'reader', 'time', 'clicked:label', 'clicked:logit']
    """

    split: str
    tasks: TaskMetrics
    predictions: pl.DataFrame
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    slices: pl.DataFrame | None = None
    features: tuple[str, ...] = ()
    derived: TaskMetrics = field(default_factory=dict)
    ranks: TableRanks = field(default_factory=dict)

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {}
        for task, metrics in (self.tasks | self.derived).items():
            for name, value in metrics.items():
                bounds = self.intervals.get(task, {}).get(name)
                interval = "" if bounds is None else f" ({bounds.low:.5g} to {bounds.high:.5g})"
                rows[f"{task} {name}"] = f"{value:.5g}{interval}"
        return html_table(f"Evaluation on {len(self.predictions):,} rows of the {self.split} split", rows)

    def summary(self) -> SplitMetrics:
        """The metrics and intervals, for cards and JSON."""
        return SplitMetrics(
            tasks=self.tasks | self.derived,
            intervals={task: dict(bounds.items()) for task, bounds in self.intervals.items()},
        )


def task_metrics(
    kind: TaskKind,
    labels_N: Floats,
    logits_N: Floats,
    facts: RowFacts = NO_FACTS,
    *,
    thorough: bool = False,
    also: Collection[str] = (),
) -> dict[str, float]:
    """Metrics of one task by name, over the rows that have a label.

    Args:
        kind: The kind of the task.
        labels_N: Labels, NaN where a row has none.
        logits_N: The ranker's logits.
        facts: Users, lists and weights of the rows; metrics that need missing ones are left out.
        thorough: Measure every metric, not only the routine ones.
        also: Names of metrics to measure besides the routine ones.
    """
    every = metrics_of(kind, groups=facts.kinds)
    metrics = [metric for metric in every if thorough or metric.routine or metric.name in also]
    return measure_all(metrics, kind, labels_N, logits_N, facts)


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (N,) and logits (N, T) of the labels of ``batches``, on the CPU; the model's mode does not change."""
    was_training = model.training
    model.eval()
    rows, logits = [torch.empty(0, dtype=torch.int64)], []
    for batch in batches:
        batch = batch.to(device)
        logits.append(batch.of_sample(model(batch)).float().cpu())
        rows.append(batch.rows)
    model.train(was_training)
    return torch.cat(rows), torch.cat(logits) if logits else torch.empty(0, 1)


def users_of(dataset: Dataset, split: str) -> Groups | None:
    """(N,) the code of each row's user, -1 where it is null; ``None`` where the data has no user column."""
    user = dataset.config.user
    return None if user is None else group_codes(dataset.keys(split)[user])


def group_kinds(data: DataConfig) -> frozenset[GroupKind]:
    """What metrics can be computed within."""
    named: dict[GroupKind, object] = {"users": data.user, "lists": data.group}
    return frozenset(kind for kind, column in named.items() if column is not None)


def facts_by_task(dataset: Dataset, split: str, tasks: Iterable[str] | None = None) -> dict[str, RowFacts]:
    """Users, lists and weights of the rows of a split, for each of ``tasks``; for all tasks if absent."""
    lists = None if dataset.config.group is None else dataset.lists(split)  # drawn negatives were never shown together
    lists_N = None if lists is None else group_codes(pl.Series(lists).replace(0, None))
    shared = RowFacts(users_of(dataset, split), lists_N)
    names = dataset.schema.tasks if tasks is None else tasks
    return {task: replace(shared, weights_N=dataset.weights(split, task)) for task in names}


def facts_of(dataset: Dataset, split: str, task: str) -> RowFacts:
    """Users, lists and weights of the rows of a split, for one task."""
    return facts_by_task(dataset, split, (task,))[task]


def dataset_of(run: Path) -> Path:
    """The data set that a finished run was trained on; a local copy if it is at an object store.

    Raises:
        UserError: ``run`` is not a run, or has not finished, or the data set was moved.
    """
    path = fetched(open_directory(run, "run", verify="sizes").meta["dataset"])
    if not path.is_dir():
        raise UserError(f"{run} was trained on {path}, which is not there: name its new place with --dataset.")
    return path


def evaluate(
    source: Path | Weights,
    dataset: Dataset,
    split: str = "test",
    *,
    batch_size: int = 16384,
    slice_by: str | None = None,
    draws: int = 200,
    score: Formula | None = None,
    device: DeviceName = "cpu",
) -> Evaluation:
    """Score ``split`` with a run's final weights (or any) and measure everything.

    Args:
        source: A run directory, in which the predictions are stored as ``predictions/<split>.parquet``, or weights.
        slice_by: One of the data set's key columns: metrics for each of its values.
        draws: Bootstrap draws for the intervals; 0 for none.
        score: The formula by which rows are ranked; if absent, that of the run's config.
        device: Where the split is scored, in float32: ``cpu``, ``cuda``, or ``auto`` for the GPU that Torch sees.

    Raises:
        UserError: No such run, split, column or device.

    Example:
        >>> evaluation = rs.evaluate(Path("run"), rs.Dataset.open(Path("dataset")), "valid")
        >>> 0 < evaluation.tasks["clicked"]["auc"] < 1
        True
    """
    if split not in dataset.splits:
        raise UserError(f"{dataset.path} has no split {split!r}: it has {', '.join(dataset.splits)}.")
    place = scoring_device(device)
    weights = load_weights(source) if isinstance(source, Path) else source
    if score is None and isinstance(source, Path):
        score = stored_config(source / CONFIG_FILE).formula
    loader = Loader(dataset, split, batch_size=batch_size, features=weights.schema.feature_names)
    ranker = weights.to_ranker()
    rows_N, logits_NT = predict(ranker.to(place), loader, place)
    ranker = ranker.cpu()
    in_order_NT = logits_NT.numpy()[rows_N.argsort().numpy()]
    facts = facts_by_task(dataset, split)
    measured = measure(dataset, split, in_order_NT, facts, slice_by=slice_by, draws=draws, score=score)
    ranks = table_ranks(weights, dataset)
    evaluation = replace(measured, features=weights.schema.feature_names, ranks=ranks)
    if isinstance(source, Path):
        (source / "predictions").mkdir(exist_ok=True)
        evaluation.predictions.write_parquet(source / "predictions" / f"{split}.parquet")
        write_table_ranks(source, ranks)
        if any(spec.additive for spec in weights.schema.sparse):
            added = added_values(weights, dataset, split, in_order_NT, facts)
            added.write_parquet(source / ADDED_FILE)
        if routers(ranker):
            expert_values(ranker, dataset, split).write_parquet(source / EXPERTS_FILE)
            expert_gains(ranker, dataset, split, facts).write_parquet(source / GAINS_FILE)
    return evaluation


def measure(
    dataset: Dataset,
    split: str,
    logits_NT: Floats,
    by_task: Mapping[str, RowFacts],
    *,
    slice_by: str | None = None,
    draws: int = 200,
    score: Formula | None = None,
) -> Evaluation:
    """All metrics of predictions on a split.

    Args:
        dataset: The data set that holds the labels.
        split: The split that was predicted.
        logits_NT: Logits of its rows, in their order.
        by_task: Users, lists and weights of the rows by task (see :func:`facts_by_task`).
        slice_by: A key column for whose values metrics are reported, too.
        draws: Bootstrap draws of the intervals.
        score: The formula by which rows are ranked, to measure its order.
    """
    labels_NT, keys = dataset.labels(split), dataset.keys(split)
    kinds = [task.kind for task in dataset.config.tasks.values()]
    tasks, intervals = {}, {}
    columns: dict[str, Floats | Groups] = {}
    for index, (name, kind) in enumerate(zip(dataset.schema.tasks, kinds, strict=True)):
        labels_N, logits_N = labels_NT[:, index], logits_NT[:, index]
        facts = by_task[name]
        tasks[name] = task_metrics(kind, labels_N, logits_N, facts, thorough=True)
        columns |= {f"{name}:label": labels_N, f"{name}:logit": logits_N}
        if facts.weights_N is not None:
            columns[f"{name}:weight"] = facts.weights_N
        if facts.lists_N is not None:
            columns[LIST] = facts.lists_N
        if draws:
            intervals[name] = _intervals(TestRows.of(labels_N, facts, kind=kind, draws=draws), logits_N)
    taken = ["row"]
    if score is not None:
        columns[SCORE] = scores_N = scores_of(dataset.config.tasks, logits_NT, score)
        if undefined := int((~np.isfinite(scores_N)).sum()):
            warnings.warn(
                f"score: {score.text!r} is NaN or infinite for {undefined:,} of {len(scores_N):,} rows of the {split} "
                "split, so its order is not measured: change the formula, such as log(x) to log(max(x, 1e-6)).",
                Notice,
                stacklevel=2,
            )
        taken.append(SCORE)
    besides = {}
    for part in derived(dataset.config.tasks, labels_NT, by_task, score):
        besides[part.name] = part.measure(logits_NT)
        outputs_N = part.outputs(logits_NT)
        if draws and np.isfinite(outputs_N).all():
            rows = TestRows.of(part.labels_N, part.facts, draws=draws)
            intervals[part.name] = _intervals(rows, outputs_N, part.metrics)
    predictions = (
        pl.DataFrame({"row": np.arange(len(labels_NT))})
        .hstack(keys.rename(lambda key: key_name(key, taken)))
        .hstack(pl.DataFrame(columns))
    )
    slices = None
    if slice_by is not None:
        slices = slice_metrics(predictions, slice_by, dataset.schema.tasks[0], kinds[0])
    return Evaluation(split, tasks, predictions, intervals, slices, derived=besides)


def _intervals(rows: TestRows, logits_N: Floats, among: Sequence[Metric] = _WITH_INTERVAL) -> dict[str, Interval]:
    defined = [m for m in _WITH_INTERVAL if m in among and (m.within is None or m.within in rows.facts.kinds)]
    return {m.name: rows.measure(m, logits_N).interval for m in defined if rows.kind in m.kinds}


def mean_label(labels_N: Floats, weights_N: Floats | None = None) -> float:
    """The (weighted) mean of the labels that are there; NaN if none are."""
    labelled_N = ~np.isnan(labels_N)
    return weighted_mean(labels_N[labelled_N], row_weights(labels_N, weights_N)[labelled_N])


def slice_metrics(predictions: pl.DataFrame, column: str, task: str, kind: TaskKind) -> pl.DataFrame:
    """Rows, mean label and metrics of ``task`` for each value of ``column``, most rows first.

    Raises:
        UserError: The predictions have no such column.
    """
    if column not in predictions.columns:
        keys = [name for name in predictions.columns if ":" not in name and name != "row"]
        raise UserError(
            f"there is no key column {column!r} to slice by: name one of {', '.join(keys)} (see data.keys)."
        )
    parts: Sequence[tuple[Any, pl.DataFrame]] = list(predictions.group_by(column))
    rows = []
    for (value,), part in parts:
        labels_N, logits_N = part[f"{task}:label"].to_numpy(), part[f"{task}:logit"].to_numpy()
        weight = f"{task}:weight"
        weights_N = part[weight].to_numpy() if weight in part.columns else None
        row = {"value": str(value), "rows": len(part), "mean_label": mean_label(labels_N, weights_N)}
        rows.append(row | task_metrics(kind, labels_N, logits_N, RowFacts(weights_N=weights_N)))
    return pl.DataFrame(rows).sort("rows", "value", descending=[True, False])
