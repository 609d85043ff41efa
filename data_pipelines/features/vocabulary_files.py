"""The files of an encoder's vocabularies."""

from pathlib import Path
from urllib.parse import quote

import polars as pl

from data_pipelines.batch import MOST_ROWS
from data_pipelines.disk.damage import intact
from data_pipelines.disk.file_names import below
from data_pipelines.disk.text_index import MappedTexts
from data_pipelines.features.vocabulary import MappedVocabulary, Vocabulary

_SMALL, _HARD = 1 << 16, 19
"""Of up to so many values an index is built in milliseconds; compressing more of them hard would take seconds."""

StoredValues = pl.DataFrame | MappedTexts
"""The columns ``value`` and, with counts, ``count``; or values that stay on disk."""


def write_vocabulary(folder: Path, table: str, values: Vocabulary, *, slim: bool) -> None:
    """Write ``vocabularies/<table>.parquet`` below ``folder``.

    Args:
        slim: Leave out what encoding does not need (counts, and ids, which follow from the order). Small vocabularies
            are compressed hard; large ones are written to ``vocabularies/<table>.safetensors`` instead, with an index
            that is memory-mapped.
    """
    if not slim:
        values.frame().write_parquet(_parquet(folder, table))
    elif len(values.values) > _SMALL:
        MappedTexts.write(values.values, _mapped(folder, table))
    else:
        frame = pl.DataFrame({"value": values.values})
        frame.write_parquet(_parquet(folder, table), compression="zstd", compression_level=_HARD, statistics=False)


def read_vocabulary(folder: Path, table: str) -> StoredValues:
    """What :func:`write_vocabulary` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    mapped, path = _mapped(folder, table), _parquet(folder, table)
    if mapped.exists():
        return MappedTexts(mapped)
    with intact(path):
        return pl.read_parquet(path, glob=False)


def vocabulary(table: str, values: StoredValues, oov_buckets: int) -> Vocabulary:
    """The vocabulary of stored values.

    Raises:
        ValueError: They are not texts, or too many.
    """
    if len(values) + oov_buckets >= MOST_ROWS:
        raise ValueError(f"the values of table {table!r} are too many")
    if isinstance(values, MappedTexts):
        return MappedVocabulary(values, oov_buckets)
    counts = values["count"] if "count" in values.columns else pl.zeros(len(values), pl.Int64, eager=True)
    if values["value"].dtype != pl.String or values["value"].null_count():
        raise ValueError(f"the values of table {table!r} are not texts")
    return Vocabulary(values["value"], counts, oov_buckets)


def _parquet(folder: Path, table: str) -> Path:
    return below(folder, f"vocabularies/{quote(table, safe='')}.parquet")


def _mapped(folder: Path, table: str) -> Path:
    return below(folder, f"vocabularies/{quote(table, safe='')}.safetensors")
