"""Rows of a split as they were logged, and a model that scores variants of them.

Letters: N rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch

from data_pipelines.batch import Batch
from data_pipelines.dataset.blocks import list_starts
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import collate
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan
from data_pipelines.files.formats import scan_files
from data_pipelines.locations import expand
from data_pipelines.logs import sources
from models.layers.heads import TaskKind
from models.ranker import Ranker
from recsys.metrics.arrays import Floats, Indices
from recsys.runs.checkpoints import load_weights
from serving.artifact.export import with_constants


@dataclass(frozen=True)
class LoggedRows:
    """The raw rows of a split with one task's labels, and the ranker that scores them, or changed copies of them.

    Attributes:
        frame: Raw rows in the order of the split, with their past.
        lists_N: The key of each row's list, 0 for none; ``None`` without ``data.group``.
    """

    dataset: Dataset
    frame: pl.DataFrame
    labels_N: Floats
    lists_N: Indices | None
    ranker: Ranker
    task: int

    @classmethod
    def read(cls, run: Path, dataset: Dataset, split: str, task: str) -> "LoggedRows":
        """The rows of ``split`` and the final weights of ``run``.

        Raises:
            UserError: The log cannot be read again, or the split is empty or not there.
        """
        weights = load_weights(run)
        at = dataset.schema.tasks.index(task)
        frame, labels_N = dataset.raw(split), dataset.labels(split)[:, at].astype(np.float64)
        if not len(frame):
            raise UserError(f"the split {split!r} of {dataset.path} has no rows.")
        return cls(dataset, frame, labels_N, dataset.lists(split), weights.to_ranker(), at)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def kind(self) -> TaskKind:
        """The kind of the task."""
        return list(self.dataset.config.tasks.values())[self.task].kind

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the features that the ranker reads."""
        return self.dataset.encoder.select(self.ranker.schema.feature_names)

    @property
    def plan(self) -> Plan:
        """The plan of the features that the ranker reads."""
        return self.encoder.plan.select(self.ranker.schema.feature_names)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Raw columns that the ranker's features read."""
        return frozenset().union(*(feature.columns() for feature in self.plan.features.values()))

    def logits(self, frame: pl.DataFrame) -> Floats:
        """(N,) logits of rows like those of the log."""
        return self._run(self._batch(frame))

    def scores(self, frame: pl.DataFrame) -> Floats:
        """(N,) logits of rows as they are served: what `serve` fixes has its fixed value."""
        return self._run(with_constants(self._batch(frame), self.ranker.schema, self.encoder))

    def both(self, frame: pl.DataFrame) -> tuple[Floats, Floats]:
        """(N,) logits of rows like those of the log, and of the same rows as they are served."""
        batch = self._batch(frame)
        asked, logits_N = with_constants(batch, self.ranker.schema, self.encoder), self._run(batch)
        return logits_N, logits_N if asked is batch else self._run(asked)

    def _batch(self, frame: pl.DataFrame) -> Batch:
        encoded = self.encoder.encode(frame.lazy()).collect()
        return collate(self.encoder.schema, encoded, np.arange(len(encoded)))

    @torch.no_grad()
    def _run(self, batch: Batch) -> Floats:
        logits_N: Floats = self.ranker(batch)[:, self.task].double().numpy()
        return logits_N

    @cached_property
    def spans(self) -> tuple[Indices, Indices]:
        """(N,) the first row of each row's list, and its rows; a row of no list is one by itself."""
        assert self.lists_N is not None
        starts_N = list_starts(self.lists_N)
        list_N = np.cumsum(starts_N) - 1
        return np.flatnonzero(starts_N)[list_N], np.bincount(list_N)[list_N]

    def places(self, column: str) -> Indices:
        """(N,) the place of each row in its list, from 0, in ascending order of ``column``.

        Raises:
            UserError: The column is missing or holds no numbers, or two rows of a list have the same value.
        """
        position_N = _numbers(self.frame, column, "off_policy.position").to_numpy()
        if np.isnan(position_N).any():
            raise UserError(
                f"off_policy.position: the column {column!r} has a missing value, or one that is not a number."
            )
        first_N, _ = self.spans
        order_N = np.lexsort((position_N, first_N))
        twice = (np.diff(position_N[order_N]) == 0) & (np.diff(first_N[order_N]) == 0)
        if twice.any():
            row = int(order_N[np.flatnonzero(twice)[0]])
            raise UserError(
                f"off_policy.position: two rows of one list have {column} {position_N[row]:g}: name the column that "
                "holds a row's place in its list, or correct data.group."
            )
        place_N = np.empty(len(self), dtype=np.int64)
        place_N[order_N] = np.arange(len(self)) - first_N[order_N]
        return place_N


def propensities_of(frame: pl.DataFrame, column: str) -> Floats:
    """(N,) the propensities of rows.

    Raises:
        UserError: The column is missing, or a value is missing, no number, not above 0, or above 1.
    """
    values = _numbers(frame, column, "off_policy.propensity")
    wrong = ~values.is_between(0, 1, closed="right").fill_null(False) | values.is_nan()
    if wrong.any():
        at = int(wrong.arg_true()[0])
        raise UserError(
            f"off_policy.propensity: {int(wrong.sum()):,} rows have no {column} above 0 and at most 1; the first of "
            f"them has {frame[column][at]!r}: a propensity is the chance with which the logged policy chose the row."
        )
    return values.to_numpy()


def action_table(rows: LoggedRows, action: Sequence[str]) -> pl.DataFrame:
    """The actions that occur in the log: one row each, with all columns that belong to an action.

    Args:
        action: The column of the action's id, then other columns of the log that belong to it.

    Raises:
        UserError: A column is missing or has several values for one action, or a feature depends on the past or on the
            list of actions, which would have to be computed for every action that was not taken.
    """
    identity, dataset = action[0], rows.dataset
    for name, feature in rows.plan.features.items():
        if feature.columns() & {*action} and (name in rows.plan.past or name in rows.plan.relative):
            raise UserError(
                f"off_policy.action: feature {name!r} reads the past or the list of {identity!r}, which is not known "
                "for actions that were not taken: train without it (train.features)."
            )
    plan = dataset.encoder.plan
    log = sources.scan(plan, expand(dataset.manifest.meta["log"])).frame
    there = log.collect_schema().names()
    for name in action:
        if name not in there:
            raise UserError(f"off_policy.action names the column {name!r}, which the log does not have.")
    joined = _joined(plan, action) & rows.columns
    belongs = [name for name in there if name in {*action, *joined}]
    found = log.select(belongs).unique().collect(engine="streaming").sort(identity)
    if found[identity].null_count():
        raise UserError(f"off_policy.action: the column {identity!r} has rows without a value: remove them.")
    several = found.filter(pl.col(identity).is_duplicated())
    if len(several):
        columns = several.filter(pl.col(identity) == several[identity][0])
        name = next(name for name in belongs if columns[name].n_unique() > 1)
        raise UserError(
            f"off_policy.action: {name!r} has several values for {identity} {several[identity][0]!r}: only what is the "
            "same in all rows of an action belongs to it."
        )
    _warn_of_context(rows, identity, {*belongs})
    return found


def _joined(plan: Plan, action: Sequence[str]) -> set[str]:
    """Columns that side tables add to the action."""
    found = set[str]()
    for side in plan.config.joins:
        if {*side.keys} <= {*action}:
            there = scan_files(expand(side.table), side.format).frame.collect_schema().names()
            found.update(side.added(there).values())
        elif {*side.keys} & {*action}:
            raise UserError(
                f"off_policy.action: the side table {side.table} is joined on {', '.join(side.keys)}, of which only a "
                "part belongs to the action: train without its columns."
            )
    return found


def _warn_of_context(rows: LoggedRows, identity: str, belongs: set[str]) -> None:
    """Name columns that seem to describe the action, and are kept as they were logged."""
    context = sorted((rows.columns - belongs) & {*rows.frame.columns})
    if not context or rows.frame[identity].n_unique() * 2 > len(rows):
        return
    most = rows.frame.group_by(identity).agg(pl.col(context).n_unique()).select(pl.col(context).max())
    varies = rows.frame.select(pl.col(context).n_unique())
    fixed = [name for name in context if most[name].item() == 1 and varies[name].item() > 1]
    if fixed:
        warnings.warn(
            f"off_policy.action: {', '.join(fixed)} has one value for each {identity}, and stays as it was logged when "
            "another action is scored: if it describes the action, name it too "
            f"(off_policy.action={[identity, *fixed]}).",
            Notice,
            stacklevel=3,
        )


def _numbers(frame: pl.DataFrame, column: str, key: str) -> pl.Series:
    if column not in frame.columns:
        raise UserError(f"{key} names the column {column!r}, which the log does not have.")
    return frame[column].cast(pl.Float64, strict=False)
