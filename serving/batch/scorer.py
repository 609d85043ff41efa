"""The scorer: one probability per task for raw rows, using the training-time encoder.

On a GPU, rows are encoded on the CPU and copied from page-locked memory. Every thread computes on a stream of its own,
so that the copies and kernels of one thread run while others encode.

Letters: B rows of a batch, T tasks.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from data_pipelines.batch import Batch
from data_pipelines.dataset.loader import collate
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.features.encoder import Encoder
from data_pipelines.logs.sources import join_sides
from data_pipelines.logs.validation import checked
from data_pipelines.names import LIST, REASON, ROW, key_name
from data_pipelines.past.state import State
from models.products import computes_bf16
from serving.artifact.artifact import Artifact
from serving.artifact.device import DeviceName, scoring_device
from serving.artifact.drift import DriftMonitor
from serving.batch.value_counts import ValueCounts
from serving.formula import SCORE

MICROBATCH = 4096
"""Rows per lookup and forward pass on a CPU: enough to keep the kernels busy, few enough for the caches."""
_ENCODED = 1 << 15
"""Rows that are encoded together: with a long history on each, more would take gigabytes."""
_FEW = MICROBATCH

_LONGEST_SHOWN = 80


def in_lists(frame: pl.DataFrame, lists_N: NDArray[Any]) -> pl.DataFrame:
    """``frame`` with the list of each row, numbered from 1."""
    return frame.with_columns(pl.Series(LIST, lists_N).cast(pl.UInt64))


def _mapped(artifact: Artifact, folder: Path) -> State:
    """A state with all its files mapped, so that an update in place changes nothing of it."""
    while True:
        fingerprint = artifact.past_in(folder).fingerprint
        state = State.open(folder, verify="sizes")
        for name in state.plan.past:
            state.frame(name)
        if open_directory(folder, "state", verify="sizes").fingerprint == fingerprint:
            return state


class Scorer:
    """Scores raw rows with one artifact. Safe to call from several threads at once.

    Args:
        state: Folder of the past to read histories and statistics from, instead of the artifact's own.
        device: Where lookups and dense part are computed: ``cpu``, ``cuda``, or ``auto`` for the GPU that Torch sees. A
            GPU computes dense products in bfloat16 if its hardware does, so that scores differ in the third digit.

    Attributes:
        device: The device that ``device`` means.

    Raises:
        UserError: There is no GPU, or it has no room for the tables.

    Example:
        >>> scorer = rs.Scorer(rs.Artifact.open(Path("artifact")))
        >>> scores = scorer.score(pl.read_csv("clicks.csv", n_rows=3))
        >>> scores.columns, len(scores)
        (['clicked'], 3)
    """

    def __init__(self, artifact: Artifact, *, state: Path | None = None, device: DeviceName = "cpu") -> None:
        self.artifact, self.device = artifact, scoring_device(device)
        self._streams = threading.local()
        if state is not None:
            self._state: State | None = _mapped(artifact, state)
        else:
            self._state = None if artifact.state is None else State.open(artifact.state, verify="sizes")
        self.ranker = artifact.ranker(self.device)
        self._encoder = artifact.encoder
        self._schema = artifact.encoder.schema
        self._plan = artifact.encoder.served
        relative = self._plan.relative
        self._relative = artifact.encoder.select(relative) if relative else None

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._schema.tasks

    def read(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """The columns of ``rows`` that scoring needs, with side tables joined if columns are missing.

        Columns of histories and statistics that the rows already have (such as ``likes.item``) are kept.
        """
        wanted = self._plan.row_columns
        if not wanted <= set(rows.collect_schema().names()) and self._plan.row_joins:
            rows = join_sides(self._plan, rows, self.artifact.find, filling=True)
        wanted |= {ROW, *self._schema.feature_names} | self._plan.optional_columns
        return rows.select(name for name in rows.collect_schema().names() if name in wanted)

    def split(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of ``frame`` that can be scored, and those with an invalid value, with ``:reason``."""
        reasons = checked(self._plan, frame.lazy(), labelled=False).select(REASON).collect()[REASON]
        good = reasons.is_null()
        return frame.filter(good), frame.with_columns(reasons).filter(~good)

    def refuse_unreadable(self, frame: pl.DataFrame) -> None:
        """Refuse rows with an invalid value.

        Raises:
            UserError: A value is invalid. The sentence names the first such row, counted from 0, its column and value.
        """
        reasons = checked(self._plan, frame.lazy(), labelled=False).select(REASON).collect()[REASON]
        if reasons.null_count() == len(reasons):
            return
        row = int(reasons.is_not_null().arg_true()[0])
        reason = str(reasons[row])
        column = max((name for name in frame.columns if reason.startswith(f"{name}: ")), key=len, default=None)
        if column is not None:
            reason = f"{column} is {_shown(frame[column][row])}, {reason.removeprefix(f'{column}: ')}"
        raise UserError(f"rows[{row}]: {reason}.")

    def score(
        self,
        frame: pl.DataFrame,
        *,
        logits: bool = False,
        drift: DriftMonitor | None = None,
        counts: ValueCounts | None = None,
    ) -> pl.DataFrame:
        """The key columns of ``frame``, then one column per task, in the order of the rows.

        A key with the name of a task is called ``key:<name>``. A column ``score`` follows if the artifact ranks by a
        formula, and columns ``<task>:conditional`` if it was exported with ``export.conditional``.

        A binary task gives a probability (calibrated if the artifact is), a count its expected value, a regression the
        value itself.

        Args:
            logits: Add ``<task>:logit`` columns: the output of the ranker.
            drift: Counts the scored rows, if given.
            counts: Counts the known values of the scored rows, if given.

        Raises:
            UserError: A feature's column is missing, or of a type the feature cannot read.
            UnavailableError: Scores are NaN or infinite, or a file of the artifact was written in place.
        """
        self.artifact.check_mapped()
        if counts is not None:
            counts.observe_rows(frame, self._plan.row_columns)
        parts = [np.empty((0, len(self.tasks)), np.float32)]
        predicted = [self.predict(parts[0])]
        for batch in self.encode(frame):
            parts.append(self.logits(batch))
            predicted.append(self.predict(parts[-1]))
            if counts is not None:
                counts.observe(self._schema, batch)
            if drift is not None and np.isfinite(parts[-1]).all():
                drift.observe(batch, predicted[-1])
        logits_NT = np.concatenate(parts)
        predictions = {name: np.concatenate([found[name] for found in predicted]) for name in predicted[0]}
        rows_N = frame[ROW].to_numpy() if ROW in frame.columns else np.arange(len(frame))
        self.check_finite(logits_NT, rows_N, predictions)
        keys = dict.fromkeys(self._plan.config.keys)
        taken = self.artifact.outputs.names
        columns = [frame[key].alias(key_name(key, taken)) for key in keys if key in frame.columns]
        columns += [pl.Series(task, values) for task, values in predictions.items()]
        if logits:
            columns += [pl.Series(f"{task}:logit", logits_NT[:, t]) for t, task in enumerate(self.tasks)]
        return pl.DataFrame(columns)

    def encode(self, frame: pl.DataFrame) -> Iterator[Batch]:
        """Encoded rows, in batches that fit a processor's cache, or larger ones for a GPU.

        ``relative`` features are computed first, for all of ``frame``, which must hold whole lists. Without the columns
        of ``data.group`` all rows are one list.
        """
        frame = self._related(frame)
        for first in range(0, max(len(frame), 1), _ENCODED):
            encoded = self._encoded(frame.slice(first, _ENCODED), self._encoder)
            for start in range(0, len(encoded), self.batch_rows):
                piece = encoded.slice(start, self.batch_rows)
                yield collate(self._schema, piece, np.arange(first + start, first + start + len(piece)))

    def encode_part(self, frame: pl.DataFrame, encoder: Encoder) -> Batch:
        """One batch of the features of ``encoder``, a selection of the artifact's encoder."""
        encoded = self._encoded(frame, encoder)
        return collate(encoder.schema, encoded, np.arange(len(encoded)))

    def _related(self, frame: pl.DataFrame) -> pl.DataFrame:
        """``frame`` with the columns of relative features."""
        if self._relative is None:
            return frame
        if not set(self._plan.config.group or ()) & set(frame.columns):
            frame = in_lists(frame, np.ones(len(frame)))
        found = self._encoded(frame, self._relative).select(self._relative.schema.feature_names)
        return frame.drop(LIST, strict=False).with_columns(found)

    def _encoded(self, frame: pl.DataFrame, encoder: Encoder) -> pl.DataFrame:
        rows = frame.lazy()
        if self._state is not None:
            rows = self._state.attach(rows.drop(ROW, strict=False), encoder.served)
        return encoder.encode_few(rows.collect()) if len(frame) <= _FEW else encoder.encode(rows).collect()

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """(B, T) logits of encoded rows."""
        with self.computing():
            logits_BT: torch.Tensor = self.ranker(self.on_device(batch))
            return logits_BT.float().cpu().numpy()

    @property
    def batch_rows(self) -> int:
        """Rows per forward pass."""
        return MICROBATCH if self.device.type == "cpu" else _ENCODED

    def on_device(self, batch: Batch) -> Batch:
        """``batch`` on the device that computes the scores: itself on a CPU, a copy on a GPU."""
        return batch if self.device.type == "cpu" else batch.pinned().to(self.device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Without gradients, and on a GPU on a stream of this thread.

        If the artifact uses int8 or bfloat16, or the GPU computes bfloat16 in hardware, all products that are not int8
        are in bfloat16.
        """
        stream: AbstractContextManager[Any] = nullcontext()
        if self.device.type == "cpu":
            reduced = self.artifact.model.precision == "bf16" or self.artifact.model.activations is not None
        else:
            stream, reduced = torch.cuda.stream(self._stream()), computes_bf16(self.device)
        with stream, torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            yield

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._streams.own.wait_stream(torch.cuda.default_stream(self.device))  # which copied the weights
        stream: torch.cuda.Stream = self._streams.own
        return stream

    def predict(self, logits_BT: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(B,) values by column, from logits: the artifact's :class:`~serving.artifact.outputs.Outputs`."""
        with np.errstate(over="ignore", invalid="ignore"):  # check_finite says where
            return self.artifact.outputs(logits_BT)

    def check_finite(
        self,
        logits_NT: NDArray[np.float32],
        rows_N: NDArray[np.integer[Any]],
        predictions: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Refuse scores that are NaN or infinite: the artifact is at fault.

        Args:
            rows_N: Number of the row of each score.
            predictions: What :meth:`predict` gives for the logits, if it is known already.

        Raises:
            UnavailableError: A prediction is NaN or infinite.
            UserError: Only the formula of the score is, so that its author can change it.
        """
        finite_N: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(logits_NT), axis=1)
        outputs = self.artifact.outputs
        if outputs.score is not None or any(task.kind != "binary" for task in outputs.tasks.values()):
            found = dict(self.predict(logits_NT) if predictions is None else predictions)
            score_N = found.pop(SCORE, None)
            for values in found.values():
                finite_N &= np.isfinite(values)
            if score_N is not None and finite_N.all():
                self._check_score(np.isfinite(score_N), rows_N)
        if not finite_N.all():
            bad = np.flatnonzero(~finite_N)
            raise UnavailableError(
                f"{self.artifact.path} gives NaN or infinite scores for {len(bad):,} of {len(finite_N):,} rows, first "
                f"for row {rows_N[bad[0]]}: restore the artifact, or export it again from a run with finite weights."
            )

    def _check_score(self, finite_N: NDArray[np.bool_], rows_N: NDArray[np.integer[Any]]) -> None:
        if not finite_N.all():
            bad = np.flatnonzero(~finite_N)
            raise UserError(
                f"{self.artifact.path}: its score {self.artifact.model.score!r} is NaN or infinite for {len(bad):,} of "
                f"{len(finite_N):,} rows, first for row {rows_N[bad[0]]}: export with another `score`, such as one "
                "that keeps the argument of log() above 0 by max()."
            )


def _shown(value: object) -> str:
    """A value for an error message, shortened if it is long."""
    shown = repr(value.to_list() if isinstance(value, pl.Series) else value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
