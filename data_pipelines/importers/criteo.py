"""Criteo display advertising: tab-separated without a header, 13 integers and 26 hashed ids, empty where missing."""

from pathlib import Path

import polars as pl

from data_pipelines.disk.storage import new_file
from data_pipelines.errors import UserError

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
_SCHEMA: dict[str, type[pl.DataType]] = {
    "label": pl.Int8,
    **dict.fromkeys(INTEGERS, pl.Int64),
    **dict.fromkeys(CATEGORIES, pl.String),
}


def convert(path: Path, out: Path) -> int:
    """Write the text file ``path`` (plain, ``.gz`` or ``.zst``) as a Parquet log ``out``; count its rows.

    Columns: ``order, label, I1 .. I13, C1 .. C26``. The file's order is the order of time, which it says nothing else
    about, so ``order`` (the row's number) is what a split by time goes by. Memory does not grow with the file.

    Raises:
        UserError: ``path`` is not there, is empty, or is not of this format.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give Criteo's train.txt, or a part of it.")
    try:
        with new_file(out) as beside:
            pl.scan_csv(
                path,
                separator="\t",
                has_header=False,
                schema=_SCHEMA,
                quote_char=None,
                row_index_name="order",
                glob=False,
            ).with_columns(pl.col("order").cast(pl.Int64)).sink_parquet(beside, row_group_size=1 << 17)
            rows = (
                pl.scan_parquet(beside, glob=False)
                .select(pl.len(), pl.col("label").is_in([0, 1]).fill_null(False).all())
                .collect()
            )
            if not rows["len"][0]:
                raise UserError(f"{path} is empty: give Criteo's train.txt, or a part of it.")
            if not rows["label"][0]:
                raise UserError(f"{path} has labels other than 0 and 1: it is not Criteo's train.txt.")
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} is not 40 columns between tabs, as Criteo's train.txt is ({_first_line(error)})."
        ) from None
    return int(rows["len"][0])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
