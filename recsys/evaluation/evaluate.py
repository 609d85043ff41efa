"""Predictions on a split, and every metric of them.

Letters: N rows, T tasks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from models.interpretation import Affinity, expert_affinities
from models.layers.heads import TaskKind
from models.moe.router import routers
from models.ranker import Ranker
from models.weights import Weights
from recsys.metrics import metrics
from recsys.metrics.metrics import Floats, Interval
from recsys.runs.checkpoints import load_weights

TOP_K = (1, 5, 10)
"""Cut-offs of NDCG, recall and hit rate."""

EXPERTS_FILE = "experts.parquet"
EXPERT_BATCHES = 20
"""What experts have learned is told from this many batches of the split evaluated last."""

Groups = npt.NDArray[np.generic]
TaskMetrics = dict[str, dict[str, float]]
"""Metrics by task, then by name."""


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on one split.

    Attributes:
        tasks: Metrics by task, tasks in the schema's order.
        intervals: 95% bootstrap intervals (whole users drawn) of AUC and log loss, by task.
        slices: One row a value of the slice column: value, rows, positives, AUC and log loss; ``None`` without one.
        predictions: (N) ``row``, the data set's keys, and ``<task>:label`` and ``<task>:logit`` of every task.
    """

    split: str
    tasks: TaskMetrics
    predictions: pl.DataFrame
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    slices: pl.DataFrame | None = None

    def summary(self) -> dict[str, Any]:
        """Metrics of the first task and, if there are several, of each under ``tasks``; intervals beside them."""
        first = next(iter(self.tasks))
        result: dict[str, Any] = dict(self.tasks[first])
        result |= {f"{name}_interval": list(bounds) for name, bounds in self.intervals.get(first, {}).items()}
        return result if len(self.tasks) == 1 else result | {"tasks": self.tasks}


def task_metrics(
    kind: TaskKind, labels_N: Floats, logits_N: Floats, users_N: Groups | None = None, *, thorough: bool = False
) -> dict[str, float]:
    """Metrics of one task over the rows that have a label; ``thorough`` adds calibration error and ranking metrics."""
    labelled_N = ~np.isnan(labels_N)
    labels_N, logits_N = labels_N[labelled_N], logits_N[labelled_N]
    if kind == "regression":
        return {"rmse": metrics.root_mean_squared_error(labels_N, logits_N)}
    if kind == "count":
        return {
            "deviance": metrics.poisson_deviance(labels_N, logits_N),
            "rmse": metrics.root_mean_squared_error(labels_N, np.exp(logits_N)),
        }
    result = {
        "auc": metrics.auc(labels_N, logits_N),
        "logloss": metrics.log_loss(labels_N, logits_N),
        "ne": metrics.normalized_entropy(labels_N, logits_N),
        "calibration": metrics.calibration_ratio(labels_N, logits_N),
    }
    if thorough:
        result["ece"] = metrics.calibration_error(labels_N, logits_N)
    if users_N is not None:
        users_N = users_N[labelled_N]
        result["gauc"] = metrics.gauc(labels_N, logits_N, users_N)
        if thorough:
            result |= _ranking_metrics(labels_N, logits_N, users_N)
    return result


def _ranking_metrics(labels_N: Floats, logits_N: Floats, users_N: Groups) -> dict[str, float]:
    result = {"mrr": metrics.mean_reciprocal_rank(labels_N, logits_N, users_N)}
    for k in TOP_K:
        result[f"ndcg@{k}"] = metrics.ndcg_at_k(labels_N, logits_N, users_N, k=k)
        result[f"recall@{k}"] = metrics.recall_at_k(labels_N, logits_N, users_N, k=k)
        result[f"hit@{k}"] = metrics.hit_rate_at_k(labels_N, logits_N, users_N, k=k)
    return result


def monitored(monitor: Mapping[str, float], tasks: Mapping[str, Mapping[str, float]]) -> float:
    """The weighted sum of metrics that early stop watches.

    A key is a metric (its mean over the tasks that have it) or ``<task>/<metric>``; losses take a negative weight.

    Raises:
        UserError: No task has such a metric.
    """
    total = 0.0
    for key, weight in monitor.items():
        task, _, metric = key.rpartition("/")
        values = [values[metric] for name, values in tasks.items() if task in ("", name) and metric in values]
        if not values:
            known = sorted({f"{name}/{metric}" for name, values in tasks.items() for metric in values})
            raise UserError(f"train.monitor.{key}: there is no such metric; there are {', '.join(known)}.")
        total += weight * float(np.mean(values))
    return total


def check_monitor(monitor: Mapping[str, float], dataset: Dataset) -> None:
    """Refuse a monitor that no evaluation of ``dataset`` could compute.

    Raises:
        UserError: A key names no metric.
    """
    rows = np.array([0.0, 1.0])
    users = None if dataset.config.user is None else rows
    monitored(
        monitor, {name: task_metrics(task.kind, rows, rows, users) for name, task in dataset.config.tasks.items()}
    )


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (N,) and logits (N, T) of ``batches``, on the CPU; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    rows, logits = [torch.empty(0, dtype=torch.int64)], []
    for batch in batches:
        logits.append(model(batch.to(device)).float().cpu())
        rows.append(batch.rows)
    model.train(was_training)
    return torch.cat(rows), torch.cat(logits) if logits else torch.empty(0, 1)


def users_of(dataset: Dataset, split: str) -> Groups | None:
    """(N,) the user of each row of ``split``; ``None`` where the data has no user column."""
    user = dataset.config.user
    return None if user is None else dataset.keys(split)[user].to_numpy()


def dataset_of(run: Path) -> Path:
    """The data set that a finished run was trained on.

    Raises:
        UserError: ``run`` is no run, or has not finished, or the data set was moved.
    """
    path = Path(open_directory(run, "run", verify="sizes").meta["dataset"])
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
) -> Evaluation:
    """Score ``split`` with a run's final weights (or any) and measure everything.

    Args:
        source: Of a run directory, the predictions are kept as ``predictions/<split>.parquet`` in it.
        slice_by: One of the data set's key columns: metrics for each of its values.
        draws: Bootstrap draws for the intervals; 0 for none.

    Raises:
        UserError: No such run, split or column.
    """
    if split not in dataset.splits:
        raise UserError(f"{dataset.path} has no split {split!r}: it has {', '.join(dataset.splits)}.")
    weights = load_weights(source) if isinstance(source, Path) else source
    loader = Loader(dataset, split, batch_size=batch_size, features=weights.schema.feature_names)
    ranker = weights.to_ranker()
    rows_N, logits_NT = predict(ranker, loader, torch.device("cpu"))
    evaluation = measure(dataset, split, logits_NT.numpy()[rows_N.argsort().numpy()], slice_by=slice_by, draws=draws)
    if isinstance(source, Path):
        (source / "predictions").mkdir(exist_ok=True)
        evaluation.predictions.write_parquet(source / "predictions" / f"{split}.parquet")
        if routers(ranker):
            served = expert_values(ranker, dataset, islice(loader, EXPERT_BATCHES))
            served.write_parquet(source / EXPERTS_FILE)
    return evaluation


def expert_values(ranker: Ranker, dataset: Dataset, batches: Iterable[Batch]) -> pl.DataFrame:
    """The feature values that each expert serves more often than chance, strongest first.

    Columns: ``router``, ``expert``, ``feature``, ``value``, ``rows``, ``share``, ``lift``, ``score`` (see
    :class:`models.interpretation.Affinity`).
    """
    names = {"id": pl.Int64, "feature": pl.String, "value": pl.String}
    tables = {spec.name: spec.table for spec in ranker.schema.sparse}
    values = [pl.DataFrame(schema=names)]
    for feature, table in tables.items():
        vocabulary = dataset.encoder.vocabulary(table)
        values.append(vocabulary.select(pl.col("id").cast(pl.Int64), pl.lit(feature).alias("feature"), "value"))
    found = pl.DataFrame(expert_affinities(ranker, batches), schema=list(Affinity._fields), orient="row")
    reserved = pl.when(pl.col("id") == 0).then(pl.lit("(null)")).otherwise(pl.lit("(unknown)"))
    return (
        found.with_columns(pl.col("id").cast(pl.Int64), pl.col("feature").cast(pl.String))
        .join(pl.concat(values), on=["feature", "id"], how="left")
        .with_columns(pl.col("value").fill_null(reserved))
        .drop("id")
        .sort("router", "expert", "score", descending=[False, False, True])
    )


def measure(
    dataset: Dataset, split: str, logits_NT: Floats, *, slice_by: str | None = None, draws: int = 200
) -> Evaluation:
    """All metrics of ``logits_NT``, rows in the order of ``split``."""
    labels_NT, users_N, keys = dataset.labels(split), users_of(dataset, split), dataset.keys(split)
    kinds = [task.kind for task in dataset.config.tasks.values()]
    tasks, intervals = {}, {}
    columns: dict[str, Floats] = {}
    for index, (name, kind) in enumerate(zip(dataset.schema.tasks, kinds, strict=True)):
        labels_N, logits_N = labels_NT[:, index], logits_NT[:, index]
        tasks[name] = task_metrics(kind, labels_N, logits_N, users_N, thorough=True)
        columns |= {f"{name}:label": labels_N, f"{name}:logit": logits_N}
        if kind == "binary" and draws:
            intervals[name] = _intervals(labels_N, logits_N, users_N, draws)
    predictions = pl.DataFrame({"row": np.arange(len(labels_NT))}).hstack(keys).hstack(pl.DataFrame(columns))
    slices = None
    if slice_by is not None:
        slices = slice_metrics(predictions, slice_by, dataset.schema.tasks[0], kinds[0])
    return Evaluation(split, tasks, predictions, intervals, slices)


def _intervals(labels_N: Floats, logits_N: Floats, users_N: Groups | None, draws: int) -> dict[str, Interval]:
    labelled_N = ~np.isnan(labels_N)
    order_N = np.flatnonzero(labelled_N)[np.argsort(logits_N[labelled_N], kind="stable")]
    labels_N, logits_N = labels_N[order_N], logits_N[order_N]
    clusters_N = order_N if users_N is None else users_N[order_N]
    return {
        "auc": metrics.interval(
            metrics.bootstrap(lambda w: metrics.auc(labels_N, logits_N, w), clusters_N, draws=draws)
        ),
        "logloss": metrics.interval(
            metrics.bootstrap(lambda w: metrics.log_loss(labels_N, logits_N, w), clusters_N, draws=draws)
        ),
    }


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
        row = {"value": str(value), "rows": len(part), "mean_label": float(np.nanmean(labels_N))}
        rows.append(row | task_metrics(kind, labels_N, logits_N))
    return pl.DataFrame(rows).sort("rows", "value", descending=[True, False])
