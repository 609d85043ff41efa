"""How far the rows of one data set are from those of another that it extends.

The population stability index of a feature is ``sum((p - q) * ln(p / q))`` over bins that hold about equal shares of
the old rows. Below 0.1 is commonly read as stable, above 0.25 as moved.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.batch import NULL_ID, Schema

_BINS = 10


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Population stability index of counts by bin; half a row is added to each bin."""
    p, q = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def drift(old_schema: Schema, old: pl.LazyFrame, new_schema: Schema, new: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    """Drift of each id, bag and number from ``old`` to ``new`` encoded training rows, the largest index first.

    ``new_values`` and ``vanished_values`` count the values that only the new rows, or only the old, have.
    """
    found: dict[str, dict[str, Any]] = {}
    for feature in new_schema.sparse:
        if feature.kind == "history":
            continue
        table, known = new_schema.table(feature.table), old_schema.table(feature.table).rows
        before, after = (_counts(frame, feature.name, feature.kind, table.rows) for frame in (old, new))
        bins = [NULL_ID, NULL_ID + 1, *(_edges(before[table.reserved : known]) + table.reserved), known]
        found[feature.name] = {
            "psi": psi(*(np.add.reduceat(np.append(counts, 0), bins) for counts in (before, after))),
            "new_values": int(np.count_nonzero(after[known:])),
            "vanished_values": int(np.count_nonzero((before > 0) & (after == 0))),
        }
    for dense in new_schema.dense:
        if dense.width == 1:
            values = [f.select(dense.name).collect(engine="streaming")[dense.name].to_numpy() for f in (old, new)]
            cuts = np.unique(np.quantile(values[0], np.linspace(0, 1, _BINS + 1)[1:-1]))
            counts = [np.bincount(np.searchsorted(cuts, v, side="right"), minlength=len(cuts) + 1) for v in values]
            found[dense.name] = {"psi": psi(*counts)}
    return dict(sorted(found.items(), key=lambda item: -item[1]["psi"]))


def _counts(frame: pl.LazyFrame, name: str, kind: str, rows: int) -> npt.NDArray[np.int64]:
    ids = pl.col(name) if kind == "id" else pl.col(name).explode(empty_as_null=False)
    counted = frame.select(id=ids).group_by("id").agg(n=pl.len()).collect(engine="streaming")
    counts = np.zeros(rows, np.int64)
    counts[counted["id"].to_numpy()] = counted["n"].to_numpy()
    return counts


def _edges(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where bins of about equal shares begin, the first at 0."""
    if not counts.sum():
        return np.zeros(min(len(counts), 1), np.int64)
    shares = np.cumsum(counts) / counts.sum()
    inner = np.searchsorted(shares, np.linspace(0, 1, _BINS + 1)[1:-1], side="left") + 1
    return np.unique(np.concatenate([[0], inner[inner < len(counts)]]))
