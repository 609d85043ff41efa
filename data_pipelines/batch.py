"""What flows from data to models: the schema of encoded features, and a batch of them.

Letters: B rows of a batch, D width of all dense features together, T tasks, F sparse features.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from data_pipelines.config.base import Config

NULL_ID = 0
"""Row 0 of every table stands for null; the OOV buckets follow, then the vocabulary in descending frequency order."""
MOST_ROWS = (1 << 31) - 1
"""The most rows that a table can have: ids are Int32."""


class TableSpec(Config):
    """An embedding table's id space: ``1 + oov_buckets`` reserved rows, then one row per value of the vocabulary."""

    name: str
    rows: int = Field(ge=1, le=MOST_ROWS)
    oov_buckets: int = Field(default=1, ge=1, le=MOST_ROWS)

    @property
    def reserved(self) -> int:
        """Rows before the first value of the vocabulary: null and the OOV buckets."""
        return 1 + self.oov_buckets


class SparseSpec(Config):
    """One sparse feature: what its bags hold and which table its ids index.

    ``sequence`` names the history the feature belongs to: all features of one history have equal lengths row by row,
    oldest event first, so that they can be read as one sequence of events. ``None`` for ids and bags.

    ``additive`` features add a term to the logits, and meet no other feature.
    """

    name: str
    table: str
    kind: Literal["id", "bag", "history"]
    weighted: bool = False
    max_length: int | None = None
    sequence: str | None = None
    additive: bool = False


class DenseSpec(Config):
    """One dense feature of ``width`` float32 numbers (a number, an indicator, a statistic, a vector)."""

    name: str
    width: int = Field(ge=1)


class Schema(Config):
    """Everything the models need to know about encoded data, and nothing about columns.

    Attributes:
        after: For each task that happens only after another one, that other task.
        levels: For each ordinal task, the values of its levels in ascending order.

    Example:
        >>> schema = rs.Dataset.open(Path("dataset")).schema
        >>> schema.tasks, schema.dense_width
        (('clicked',), 1)
        >>> schema.table("article").reserved
        2
    """

    tables: tuple[TableSpec, ...]
    sparse: tuple[SparseSpec, ...]
    dense: tuple[DenseSpec, ...]
    tasks: tuple[str, ...]
    after: dict[str, str] = Field(default={})
    levels: dict[str, tuple[float, ...]] = Field(default={})

    @property
    def chains(self) -> tuple[tuple[int, int], ...]:
        """For each task with ``after``: its column and that of the earlier task, in the order of the chain."""

        def before(task: str) -> int:
            return 1 + before(self.after[task]) if task in self.after else 0

        ordered = sorted(self.after.items(), key=lambda pair: before(pair[0]))
        return tuple((self.tasks.index(task), self.tasks.index(first)) for task, first in ordered)

    def table(self, name: str) -> TableSpec:
        """The id space of the table ``name``."""
        return next(table for table in self.tables if table.name == name)

    @property
    def dense_width(self) -> int:
        """The number of columns of the dense matrix."""
        return sum(feature.width for feature in self.dense)

    @property
    def dense_columns(self) -> dict[str, slice]:
        """The columns of each dense feature in the dense matrix."""
        stops = accumulate(feature.width for feature in self.dense)
        return {f.name: slice(stop - f.width, stop) for f, stop in zip(self.dense, stops, strict=True)}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of all features: sparse ones first, then dense ones."""
        return tuple(f.name for f in self.sparse) + tuple(f.name for f in self.dense)


@dataclass(slots=True)
class Batch:
    """Encoded rows: what the loader and the scorer give to a ranker.

    Attributes:
        sparse: Bags of the unweighted sparse features, keys in schema order; ids are row numbers of their tables.
        weighted: Bags with weights of the weighted features; ``None`` where the schema has none.
        dense: (B, D) float32, features in schema order.
        labels: (B, T) float32; NaN where a row has no label for a task. ``None`` when scoring.
        rows: (B,) int64, positions of the rows in their split (or in the input when scoring).
        weights: (B, T) float32, how much each row counts for each task; ``None`` where all count the same.
        log_q: (B, T) float32, the log of how many times as likely as by a uniform draw a row's item is drawn as a
            negative, 0 for tasks without negatives; ``None`` where nothing is to be corrected.
        lists: (B,) int64, ascending from 0: the list that each row was shown in, where batches keep lists whole.

    Example:
        >>> batch = next(iter(rs.Loader(rs.Dataset.open(Path("dataset")), "train", batch_size=32)))
        >>> len(batch), batch.dense.shape, batch.labels.shape
        (32, torch.Size([32, 1]), torch.Size([32, 1]))
        >>> batch.sparse.keys()
        ['reader', 'article', 'topics', 'read.article']
    """

    sparse: KeyedJaggedTensor
    weighted: KeyedJaggedTensor | None
    dense: Tensor
    labels: Tensor | None
    rows: Tensor
    weights: Tensor | None = None
    log_q: Tensor | None = None
    lists: Tensor | None = None

    def __len__(self) -> int:
        return self.dense.shape[0]

    def keyed(self, *, weighted: bool) -> KeyedJaggedTensor:
        """Bags of the weighted features, or of the others."""
        bags = self.weighted if weighted else self.sparse
        assert bags is not None
        return bags

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``, ``rows`` left on the CPU.

        A batch from :meth:`pinned` is copied while the CPU does other work.
        """
        if self.dense.device == device:
            return self
        for bags in (self.sparse, self.weighted):
            if bags is not None:  # counted here, so that it is not read back from a GPU later
                bags.offset_per_key()
                bags.offsets()
        return self._changed(lambda part: part.to(device, non_blocking=True))

    def bags(self, feature: SparseSpec) -> JaggedTensor:
        """The bags of a sparse feature."""
        return self.keyed(weighted=feature.weighted)[feature.name]

    def of_sample(self, logits_BT: Tensor) -> Tensor:
        """The logits of the labels of this batch, from those of the ranker (log-q correction).

        A popular item is often drawn as a negative. Without that share its logit is as if negatives were drawn
        uniformly, which is what the ranker learns and serves (Yi et al., RecSys 2019, "Sampling-bias-corrected neural
        modeling for large corpus item recommendations").
        """
        return logits_BT if self.log_q is None else logits_BT - self.log_q

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies without waiting for the CPU."""
        return self._changed(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of this batch, copied on another stream, until ``stream`` has used it."""
        for part in self._parts().values():
            part.record_stream(stream)

    def _parts(self) -> dict[str, Any]:
        """The tensors that a device computes with."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}
        return {name: part for name, part in parts.items() if part is not None}

    def _changed(self, change: Callable[[Any], Any]) -> "Batch":
        return replace(self, **{name: change(part) for name, part in self._parts().items()})
