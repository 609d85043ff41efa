"""Encoded splits as SciPy CSR matrices (rows x bag of features), and back.

The columns of a matrix come in blocks, one per feature. A sparse feature has one column per row of its table: how often
the id is in the row's bag (or its summed weights); of a dense feature as many as it is wide.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import scipy.sparse as sp

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.storage import new_file
from data_pipelines.errors import UserError
from data_pipelines.features.encoder import Encoder

_BATCH_ROWS = 1 << 16


def to_csr(dataset: Dataset, split: str, features: Sequence[str] | None = None) -> tuple[sp.csr_matrix, list[str]]:
    """A split as a float32 matrix, and the names of its columns: ``feature=value``, or ``feature`` of dense ones.

    Args:
        features: Only these, named as in the config or the schema; all by default.

    Raises:
        UserError: There is no such split or feature.

    Example:
        >>> matrix, names = rs.to_csr(rs.Dataset.open(Path("dataset")), "train", ["reader", "price"])
        >>> matrix.shape, names[-1]
        ((480, 15), 'price')
    """
    loader = Loader(dataset, split, batch_size=_BATCH_ROWS, features=features)
    matrix = sp.vstack([batch_to_csr(batch, loader.schema) for batch in loader], format="csr")
    return matrix, column_names(dataset.encoder, loader.schema)


def batch_to_csr(batch: Batch, schema: Schema) -> sp.csr_matrix:
    """The rows of one batch as a float32 matrix whose columns are those of :func:`blocks`."""
    columns = blocks(schema)
    rows_at, columns_at, values_at = [], [], []
    for feature in schema.sparse:
        bag = batch.bags(feature)
        ids = bag.values().numpy()
        rows_at.append(np.repeat(np.arange(len(batch)), bag.lengths().numpy()))
        columns_at.append(columns[feature.name].start + ids.astype(np.int64))
        values_at.append(bag.weights().numpy() if feature.weighted else np.ones(len(ids), np.float32))
    if schema.dense:
        dense = batch.dense.numpy()
        rows, positions = np.nonzero(dense)
        rows_at.append(rows)
        columns_at.append(columns[schema.dense[0].name].start + positions)
        values_at.append(dense[rows, positions])
    width = max(block.stop for block in columns.values())
    where = (np.concatenate(rows_at), np.concatenate(columns_at))
    matrix = sp.csr_matrix((np.concatenate(values_at), where), shape=(len(batch), width), dtype=np.float32)
    matrix.sort_indices()
    return matrix


def from_csr(matrix: sp.csr_matrix, schema: Schema) -> pl.DataFrame:
    """The encoded columns that a matrix was made of, named and typed as the encoder gives them.

    A matrix does not store the order within a bag: ids are returned in ascending order, with repetitions.
    """
    frame: dict[str, pl.Series] = {}
    for name, block in blocks(schema).items():
        part = matrix[:, block].tocsr()
        part.sum_duplicates()
        sparse = next((feature for feature in schema.sparse if feature.name == name), None)
        if sparse is None:
            dense = part.toarray()
            frame[name] = pl.Series(name, dense[:, 0] if dense.shape[1] == 1 else dense)
            continue
        ids = part.indices.astype(np.int32)
        if sparse.weighted:
            frame[name] = _lists(name, ids, part.indptr)
            frame[f"{name}:weights"] = _lists(f"{name}:weights", part.data, part.indptr)
            continue
        times = part.data.astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(times)])[part.indptr]
        repeated = np.repeat(ids, times)
        frame[name] = pl.Series(name, repeated) if sparse.kind == "id" else _lists(name, repeated, offsets)
    return pl.DataFrame(frame)


def blocks(schema: Schema) -> dict[str, slice]:
    """Columns of each feature: sparse ones first, then dense, in schema order."""
    widths = [(feature.name, schema.table(feature.table).rows) for feature in schema.sparse]
    widths += [(feature.name, feature.width) for feature in schema.dense]
    stops = np.cumsum([width for _, width in widths]).tolist()
    return {name: slice(stop - width, stop) for (name, width), stop in zip(widths, stops, strict=True)}


def column_names(encoder: Encoder, schema: Schema) -> list[str]:
    """Names of the columns of :func:`blocks`; reserved rows are ``feature=<null>`` and ``feature=<oov>``."""
    names: list[str] = []
    for feature in schema.sparse:
        table = schema.table(feature.table)
        reserved = ["<null>"] + ["<oov>"] * table.oov_buckets
        values = encoder.vocabulary(feature.table)["value"].cast(pl.String).to_list()
        names += [f"{feature.name}={value}" for value in reserved + values]
    for dense in schema.dense:
        names += [dense.name] if dense.width == 1 else [f"{dense.name}[{i}]" for i in range(dense.width)]
    return names


def save(path: Path, matrix: sp.csr_matrix, columns: Sequence[str]) -> None:
    """Write a matrix and its column names as ``.npz``; ``scipy.sparse.load_npz`` reads the matrix of it too."""
    names = np.frombuffer(json.dumps(list(columns), ensure_ascii=False).encode(), np.uint8)
    with new_file(path) as beside, beside.open("wb") as file:
        np.savez_compressed(
            file,
            format=np.array(b"csr"),
            shape=np.array(matrix.shape),
            data=matrix.data,
            indices=matrix.indices,
            indptr=matrix.indptr,
            columns=names,
        )


def load(path: Path) -> tuple[sp.csr_matrix, list[str]]:
    """The matrix and column names that :func:`save` wrote.

    Raises:
        UserError: ``path`` is not there, or is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = arrays["data"], arrays["indices"], arrays["indptr"]
            return sp.csr_matrix(parts, shape=tuple(arrays["shape"])), json.loads(arrays["columns"].tobytes())
    except FileNotFoundError:
        raise UserError(f"{path} is not there: save a matrix first.") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a saved matrix ({error}): save it again.") from None


def _lists(name: str, values: npt.NDArray[np.generic], offsets: npt.NDArray[np.integer]) -> pl.Series:
    """A list column of flat values and (N + 1) offsets."""
    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
    return pl.Series(name, pl.from_arrow(array))
