"""Frappe app usage in the three CSV files of its public split (Frappe_x1): ids, a label, and no time."""

from pathlib import Path

import polars as pl

from data_pipelines.disk.storage import new_file
from data_pipelines.errors import UserError


def convert(path: Path, out: Path) -> int:
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of the folder ``path`` as one Parquet log; count its rows.

    The log has the columns of the files and ``split``, which names the file a row came from.

    Raises:
        UserError: A file is missing, damaged, or unlike the others.
    """
    frames = []
    for split in ("train", "valid", "test"):
        file = path / f"{split}.csv"
        try:
            frames.append(pl.read_csv(file, glob=False).with_columns(pl.lit(split).alias("split")))
        except FileNotFoundError:
            raise UserError(
                f"{file} is not there: give the folder that holds train.csv, valid.csv, test.csv."
            ) from None
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
        if frames[-1].schema != frames[0].schema:
            raise UserError(f"{file} has other columns than {path / 'train.csv'}: download the data set again.")
    log = pl.concat(frames)
    with new_file(out) as beside:
        log.write_parquet(beside)
    return log.height
