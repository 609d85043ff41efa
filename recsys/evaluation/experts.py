"""What the experts of a mixture have learned: which rows each serves, and how those rows would score without it.

Letters: N rows, B rows of a batch, R rows of a table, T tasks.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from data_pipelines.batch import Batch, SparseSpec
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from models.interpretation import Swap, Trait, expert_affinities, expert_swaps, feature_ids, feature_traits
from models.layers.heads import TaskKind
from models.ranker import Ranker
from recsys.evaluation.comparison import TestRows
from recsys.metrics.binary import AUC, LOG_LOSS
from recsys.metrics.metric import Metric
from recsys.metrics.registry import main_metric
from recsys.metrics.rows import RowFacts

EXPERTS_FILE = "experts.parquet"
"""What :func:`expert_values` found when a run was evaluated last."""
GAINS_FILE = "expert_gains.parquet"
"""What :func:`expert_gains` found when a run was evaluated last."""

_BATCHES, _BATCH_ROWS = 20, 1 << 14
_DRAWS = 200
_FEW_VALUES = 64
_MANY_VALUES = 100
_TENTHS = 10
_MOST_EVENTS = 1 << 20

_VALUES = pl.Schema(
    {
        "router": pl.String,
        "expert": pl.Int64,
        "feature": pl.String,
        "value": pl.String,
        "rows": pl.Int64,
        "share": pl.Float64,
        "lift": pl.Float64,
        "score": pl.Float64,
    }
)
_GAINS = pl.Schema(
    {
        "router": pl.String,
        "expert": pl.Int64,
        "task": pl.String,
        "metric": pl.String,
        "rows": pl.Int64,
        "share": pl.Float64,
        "own": pl.Float64,
        "next_best": pl.Float64,
        "gain": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
    }
)


def expert_batches(ranker: Ranker, dataset: Dataset, split: str) -> Iterator[Batch]:
    """The rows of a split from which experts are described: the first 327,680."""
    return islice(Loader(dataset, split, batch_size=_BATCH_ROWS, features=ranker.schema.feature_names), _BATCHES)


def expert_values(ranker: Ranker, dataset: Dataset, split: str) -> pl.DataFrame:
    """What the rows of each expert have in common: values that it serves more often than chance, strongest first.

    Values are those of features, how often the value of an id was seen in training, tenths of numbers, lengths of
    histories, hours and weekdays, and values of key columns that have few.

    Returns:
        Columns ``router``, ``expert``, ``feature``, ``value``, ``rows``, ``share``, ``lift`` and ``score`` (see
        :class:`models.interpretation.Affinity`).
    """
    named = [*_feature_values(ranker, dataset), *_seen_counts(ranker, dataset)]
    first = next(expert_batches(ranker, dataset, split), None)
    if first is not None:
        named += [*_numbers(ranker, first), *_history_lengths(ranker), *_key_values(dataset, split, ranker)]
    texts = {trait.name: text_of for trait, text_of in named}
    found = expert_affinities(ranker, expert_batches(ranker, dataset, split), [trait for trait, _ in named])
    rows = [(a.router, a.expert, a.trait, texts[a.trait](a.value), a.rows, a.share, a.lift, a.score) for a in found]
    frame = pl.DataFrame(rows, schema=_VALUES, orient="row")
    return frame.sort("router", "expert", "score", descending=[False, False, True])


Named = tuple[Trait, Callable[[int], str]]
"""A trait, and what gives the text of each of its values."""


def _feature_values(ranker: Ranker, dataset: Dataset) -> Iterator[Named]:
    tables = {spec.name: spec.table for spec in ranker.schema.sparse}
    for trait in feature_traits(ranker):
        table = tables[trait.name]
        values, reserved = dataset.encoder.vocabulary(table)["value"], dataset.schema.table(table).reserved
        yield trait, partial(_text_of_id, values, reserved)


def _text_of_id(values: pl.Series, reserved: int, index: int) -> str:
    if index < reserved:
        return "(null)" if index == 0 else "(unknown)"
    return str(values[index - reserved])


def _seen_counts(ranker: Ranker, dataset: Dataset) -> Iterator[Named]:
    """Of ids with many values: in how many training rows the value of a row was."""
    for spec in ranker.schema.sparse:
        table = ranker.schema.table(spec.table)
        if spec.kind != "id" or table.rows < _MANY_VALUES:
            continue
        count_R = np.zeros(table.rows, dtype=np.int64)
        vocabulary = dataset.encoder.vocabulary(spec.table)
        if not (vocabulary["count"] > 0).any():
            continue  # counts of hours, buckets and hashes are not kept
        count_R[vocabulary["id"].to_numpy().astype(np.int64)] = vocabulary["count"].to_numpy()
        power_R = torch.from_numpy(np.ceil(np.log10(count_R + 1)).astype(np.int64))
        labels = ["0", *(f"{10**p:,} to {10 ** (p + 1) - 1:,}" for p in range(int(power_R.max())))]
        read = partial(_looked_up, spec, power_R)
        yield Trait(f"training rows of {spec.name}", len(labels), read), labels.__getitem__


def _looked_up(spec: SparseSpec, code_R: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    row_L, id_L = feature_ids(spec, batch)
    return row_L, code_R[id_L]


def _numbers(ranker: Ranker, first: Batch) -> Iterator[Named]:
    """Tenths of the rows of ``first`` by the first column of each dense feature; equal numbers stay together."""
    for name, columns in ranker.schema.dense_columns.items():
        number_B = first.dense[:, columns.start].contiguous()
        tenths = torch.arange(1, _TENTHS, dtype=number_B.dtype) / _TENTHS
        edges = torch.unique(torch.quantile(number_B, tenths))
        code_B = torch.bucketize(number_B, edges, right=True)
        below = torch.bincount(code_B, minlength=len(edges) + 1).cumsum(0) / max(len(number_B), 1)
        stops = [round(100 * share) for share in below.tolist()]
        labels = [f"from {low}% to {high}% of its rows" for low, high in zip([0, *stops], stops, strict=False)]
        yield Trait(name, len(labels), partial(_bucket, columns.start, edges)), labels.__getitem__


def _bucket(column: int, edges: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.arange(len(batch)), torch.bucketize(batch.dense[:, column].contiguous(), edges, right=True)


def _history_lengths(ranker: Ranker) -> Iterator[Named]:
    """Numbers of events, by powers of two."""
    firsts = {spec.sequence: spec for spec in reversed(ranker.schema.sparse) if spec.sequence is not None}
    for name, spec in firsts.items():
        most = spec.max_length or _MOST_EVENTS
        ranges = [(1 << power, min((2 << power) - 1, most)) for power in range(most.bit_length())]
        labels = ["none", *(f"{low}" if low == high else f"{low} to {high}" for low, high in ranges)]
        yield Trait(f"events in {name}", len(labels), partial(_length, spec, len(labels) - 1)), labels.__getitem__


def _length(spec: SparseSpec, most: int, batch: Batch) -> tuple[Tensor, Tensor]:
    code_B = torch.ceil(torch.log2(batch.bags(spec).lengths().double() + 1)).long().clamp(max=most)
    return torch.arange(len(batch)), code_B


def _key_values(dataset: Dataset, split: str, ranker: Ranker) -> Iterator[Named]:
    """Hours and weekdays of the time column, and the values of other key columns that have few."""
    keys, known = dataset.keys(split), set(ranker.schema.feature_names)
    columns = {name: keys[name].cast(pl.String) for name in keys.columns if name != dataset.config.time}
    if dataset.config.time is not None and (time := keys[dataset.config.time]).dtype == pl.Datetime:
        if not any(name.endswith(".hour") for name in known):
            columns["hour"] = time.dt.strftime("%H")
        if not any(name.endswith(".weekday") for name in known):
            columns["weekday"] = time.dt.strftime("%A")
    for name, column in columns.items():
        if name not in known and 1 < column.n_unique() <= _FEW_VALUES:
            labels = column.unique().sort().fill_null("(null)").to_list()
            code_N = column.rank("dense").cast(pl.Int64).fill_null(0).to_numpy(writable=True)
            code_N = code_N if column.null_count() else code_N - 1
            yield Trait(name, len(labels), partial(_of_row, torch.from_numpy(code_N))), labels.__getitem__


def _of_row(code_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.arange(len(batch)), code_N[batch.rows]


def expert_gains(ranker: Ranker, dataset: Dataset, split: str, by_task: Mapping[str, RowFacts]) -> pl.DataFrame:
    """Where each expert beats the others: metrics of the rows that it serves, as routed and by the next best choice.

    The next best choice is what the router does without the expert: with a ``top_k`` of 1 another expert computes the
    row, otherwise another one takes its place beside those that stay.

    Args:
        by_task: Users, lists and weights of the rows of ``split``.

    Returns:
        Columns ``router``, ``expert``, ``task``, ``metric``, ``rows``, ``share`` (of all rows), ``own``, ``next_best``,
        ``gain`` (how much better ``own`` is) and its 95% interval over users from ``low`` to ``high``. Metrics that are
        undefined on the rows are left out.
    """
    labels_NT, seen = dataset.labels(split), min(dataset.splits[split], _BATCHES * _BATCH_ROWS)
    kinds = [task.kind for task in dataset.config.tasks.values()]
    rows: list[dict[str, object]] = []
    for swap in expert_swaps(ranker, expert_batches(ranker, dataset, split)):
        for t, (task, kind) in enumerate(zip(dataset.schema.tasks, kinds, strict=True)):
            about = {"router": swap.router, "expert": swap.expert, "task": task}
            measured = _gains(swap, t, labels_NT[:, t], by_task[task], kind)
            rows.extend(about | gain | {"share": gain["rows"] / seen} for gain in measured)
    return pl.DataFrame(rows, schema=_GAINS)


def _gains(swap: Swap, task: int, labels_N: np.ndarray, facts: RowFacts, kind: TaskKind) -> Iterator[dict[str, Any]]:
    """The metrics of one task on the rows that an expert serves."""
    served_N = swap.served_NT[:, task]
    rows = swap.rows_N[served_N].numpy()
    own_N, next_N = (logits_NT[served_N, task].double().numpy() for logits_NT in (swap.logits_NT, swap.without_NT))
    test = TestRows.of(labels_N[rows], facts.take(rows), kind=kind, draws=_DRAWS)
    metrics: tuple[Metric, ...] = (AUC, LOG_LOSS) if kind == "binary" else (main_metric(kind),)
    for metric in metrics:
        own, next_best, difference = test.difference(metric, own_N, next_N)
        if np.isfinite([own, next_best]).all():
            sign = -1 if metric.better == "lower" else 1
            low, high = sorted(sign * bound for bound in difference)
            found = {"metric": metric.name, "rows": len(test), "own": own, "next_best": next_best}
            yield found | {"gain": sign * (own - next_best), "low": low, "high": high}
